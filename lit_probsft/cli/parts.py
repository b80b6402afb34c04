"""What a configuration of fit names, built without a run: the data module, or the module beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_probsft.cli.fit import ProbSFTCLI, lend_tokenizer, run_name
from lit_probsft.cli.quiet import quieten
from lit_probsft.data import InstructionDataModule
from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder
from lit_probsft.training.module import ProbSFTModule


class _DataOnly(ProbSFTCLI):
    """Reads a configuration as fit does, and builds its data module alone."""

    def before_instantiate_classes(self) -> None:
        """Nothing but the tokenizer that the model lends: no run is begun."""
        lend_tokenizer(self.config[self.command])

    def instantiate_classes(self) -> None:
        """The data module, with what a constructor refuses told as fit tells it."""
        self.datamodule = self.built("data")

    def built(self, part: str) -> Any:
        """One part of the configuration, instantiated alone."""
        alone = Namespace({part: self.config[self.command][part]})
        return self.parser.instantiate_classes(Namespace(subcommand=self.command, **{self.command: alone}))[
            self.command
        ][part]

    def _set_seed(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class _Parts(_DataOnly):
    """Builds the module too, whose model is not loaded, and says where the run lies."""

    def before_instantiate_classes(self) -> None:
        """The run's folder is looked into at most."""
        config = self.config[self.command]
        self.run = RunFolder(Path(config.runs_dir).expanduser() / run_name(config))
        if "init_args" not in config.model or config.model.init_args.get("model") is None:
            raise UserError("model.model", "expected a model (a hub id, a folder, or RandomCausalLM), got none")
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        """Data module and module, with what a constructor refuses told as fit tells it."""
        super().instantiate_classes()
        self.model = self.built("model")


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
