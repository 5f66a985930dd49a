"""Learning methods: one folder each with a torch-free config and the method."""
