"""The index stage: a data set becomes a table with one row a video."""
