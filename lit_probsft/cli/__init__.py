"""The command line: one short file per command. `main` runs a command."""

from lit_probsft.cli.commands import main

__all__ = ["main"]
