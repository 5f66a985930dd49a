"""One share of a prepare stage: the videos one job of several re-encodes."""
