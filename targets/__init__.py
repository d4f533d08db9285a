"""Places where models run; every module below that defines a `Target` with a `name` is a built-in target.

Importing this package, or any target module, imports no runtime: that happens when a target is used.
"""
