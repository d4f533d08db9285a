"""`python -m graphopt.cli`."""

from graphopt.cli import main

main()
