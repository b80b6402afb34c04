"""Builds the data module of a configuration, or the module as well, without starting a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace

from lit_probsft.cli.config.checks import check_model
from lit_probsft.cli.fit import ProbSFTCLI
from lit_probsft.cli.flags import run_folder
from lit_probsft.cli.quiet import quieten
from lit_probsft.cli.seeding import chosen_seed
from lit_probsft.cli.weights import lend_tokenizer
from lit_probsft.data import InstructionDataModule
from lit_probsft.parallel.seeds import with_run_seed
from lit_probsft.run.folder import RunFolder
from lit_probsft.training.module import ProbSFTModule


class _DataOnly(ProbSFTCLI):
    """Parses a configuration as fit does, and builds its data module alone."""

    def before_instantiate_classes(self) -> None:
        """Lend the model's tokenizer to the data."""
        lend_tokenizer(self.config[self.command])

    def instantiate_classes(self) -> None:
        """Build the data module."""
        self.datamodule = self.build("data")

    def build(self, part: str) -> Any:
        """One part of the configuration, built alone."""
        config = Namespace(subcommand=self.command)
        config[self.command] = Namespace({part: self.config[self.command][part]})
        with with_run_seed(self.config[self.command].seed_everything):
            return self.parser.instantiate_classes(config)[self.command][part]

    def seed(self) -> None:
        """Find the run's seed, but leave the random state of the process alone."""
        config = self.config[self.command]
        config.seed_everything = chosen_seed(config)

    def run_command(self, command: str) -> None:
        """Run nothing."""


class _Parts(_DataOnly):
    """Builds the module as well, whose model is not loaded, and finds the run's folder."""

    def before_instantiate_classes(self) -> None:
        """Find the run's folder and lend the model's tokenizer to the data."""
        config = self.config[self.command]
        self.run = run_folder(config)
        check_model(config)
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        """Build data module and module."""
        super().instantiate_classes()
        self.model = self.build("model")


def parts_of(args: Sequence[str]) -> tuple[ProbSFTModule, InstructionDataModule, RunFolder, Namespace]:
    """Module (its model not loaded), data module (not set up), run folder and the trainer's flags of a configuration.

    Raises:
        UserError: a flag or a value is wrong.
    """
    quieten()
    cli = _Parts(["fit", *args])
    return cli.model, cli.datamodule, cli.run, cli.config[cli.command].trainer


def data_of(args: Sequence[str]) -> InstructionDataModule:
    """The data module of a configuration, not set up; neither model nor trainer is built.

    Raises:
        UserError: a flag or a value is wrong.
    """
    quieten()
    datamodule: InstructionDataModule = _DataOnly(["fit", *args]).datamodule
    return datamodule
