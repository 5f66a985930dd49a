"""Recipes, their configuration groups, and the stages, methods, models and data behind them."""
