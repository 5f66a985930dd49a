"""Publishing to MLflow: recorder, outbox, lineage, comparison, server."""
