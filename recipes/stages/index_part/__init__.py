"""One share of an index: the videos one job of several looks at."""
