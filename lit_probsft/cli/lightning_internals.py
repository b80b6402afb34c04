"""The private names of Lightning's command line that ours relies on.

tests/cli/test_lightning_internals.py fails if a version of Lightning changes one of them.
"""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class OpenCLI(LightningCLI):
    """LightningCLI with its private steps under public names, for a subclass to override."""

    def parser_of(self, command: str) -> LightningArgumentParser:
        """The parser of one command."""
        return self._parser(command)

    def seed(self) -> None:
        """Seed everything with `seed_everything` of the configuration, before any class is built."""
        super()._set_seed()

    def read_hyperparameters(self) -> None:
        """Take the module's arguments from `ckpt_path`, where the checkpoint has them."""
        super()._parse_ckpt_path()

    def run_command(self, command: str) -> None:
        """Call the trainer, after everything is built."""
        super()._run_subcommand(command)

    def _set_seed(self) -> None:
        self.seed()

    def _parse_ckpt_path(self) -> None:
        self.read_hyperparameters()

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_command(subcommand)
