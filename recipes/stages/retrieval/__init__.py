"""Nearest-neighbour retrieval with the features of an encoder."""
