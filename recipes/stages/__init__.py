"""Stage kinds: one folder each with a torch-free config and one run function."""
