"""Backbones and heads; a builder takes a config and returns a module."""
