"""Rewrites that make a graph smaller without changing what it computes."""
