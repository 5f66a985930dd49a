"""Pretraining: learn an encoder from videos without labels."""
