"""`python -m graphopt` and the `graphopt` command: an interrupt ends both in one line while they still import, too."""

import sys


def main() -> None:
    """Entry point of the `graphopt` command."""
    try:
        from graphopt.cli import main as run

        run()
    except KeyboardInterrupt:
        print("graphopt: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
