"""Index, decoding, clip sampling, augmentation, resumable order, synthetic videos."""
