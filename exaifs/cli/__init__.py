"""The command line. `main` is the entry point of the `exaifs` program."""

from exaifs.cli.root import main

__all__ = ["main"]
