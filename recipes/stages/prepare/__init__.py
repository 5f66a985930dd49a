"""The prepare stage: videos re-encoded for fast and exact random access."""
