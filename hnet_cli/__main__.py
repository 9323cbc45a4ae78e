"""`python -m hnet_cli` is the `hnet` command."""

from hnet_cli.cli.app import main

main()
