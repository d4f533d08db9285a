"""Rewrites that let a model compute in fewer bits (stage quantize)."""
