"""Rewrites that change in which order the axes of values lie."""
