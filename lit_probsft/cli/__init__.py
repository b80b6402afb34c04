"""One short file per command; `main` runs the command line."""

from lit_probsft.cli.commands import main

__all__ = ["main"]
