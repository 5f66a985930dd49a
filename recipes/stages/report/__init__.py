"""The page that sets all results of a recipe side by side."""
