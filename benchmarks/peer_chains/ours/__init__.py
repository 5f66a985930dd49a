"""A stage kind that runs the script of the comparison; copied into a copy of the sources."""
