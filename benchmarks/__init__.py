"""The figures that the project promises, each a script that makes its table and fails when a bar is missed.

python -m benchmarks.nodes        writes docs/figures/nodes.md; `make figures` runs them all
"""
