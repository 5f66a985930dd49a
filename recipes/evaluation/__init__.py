"""Feature extraction, accuracy, recall@k, linear classifiers and figures."""
