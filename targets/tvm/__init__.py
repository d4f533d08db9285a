"""Apache TVM as a target: `tvm{device=cpu isa=avx2 threads=4}` compiles a model to one shared library.

machine.py    Machine, what code is generated for: instruction set, registers, caches, threads
target.py     the Target class

Nothing here imports TVM at module level: it takes seconds, and listing targets must not.
"""
