"""`python -m exaifs`: the same as the `exaifs` program."""

from exaifs.cli import main

main()
