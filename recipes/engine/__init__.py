"""One training loop, checkpoint commit, schedules and optimizers."""
