"""`python -m hnet_cli` is the `hnet` command."""

from hnet_cli.cli import main

main()
