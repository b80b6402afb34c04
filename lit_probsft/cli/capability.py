"""`capability`: what a model makes of its training rows before it is trained on them, and which objective that asks
for."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from lit_probsft.analysis.advice import Command
from lit_probsft.analysis.capability_figure import draw_capability
from lit_probsft.analysis.findings import Findings, in_words
from lit_probsft.analysis.survey import Survey
from lit_probsft.cli.fit import ProbSFTCLI, run_training_command
from lit_probsft.data import InstructionDataModule
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.store import Documents
from lit_probsft.errors import UserError
from lit_probsft.objectives import Objective
from lit_probsft.run.facts import model_name, versions
from lit_probsft.storage.adapter_folder import is_adapter_folder
from lit_probsft.storage.atomic import atomic_write, report_write_errors, write_json, write_text
from lit_probsft.training.callbacks import ProgressBar
from lit_probsft.training.fitting import ignore_sources
from lit_probsft.training.metrics import Calibration, ProbHistogram
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.probing import token_statistics, training_documents


class TrainingRows(LightningDataModule):
    """The training rows of a data module, each once, in the place of validation rows.

    Args:
        data: of the configuration; everything else that is asked for is answered by it.
        sample: how many rows; None for all.

    After `setup`:
        `documents`, and `total`, how many there are to choose from (None in a stream).
    """

    def __init__(self, data: InstructionDataModule, sample: int | None) -> None:
        super().__init__()
        if data.streaming and sample is None:
            raise UserError("--sample", "expected a number of rows with data.streaming, since a stream has no end")
        self.data, self.sample = data, sample
        self.documents: Documents
        self.total: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)

    @property
    def max_token_id(self) -> int:
        """The largest id, where it is known without a look at all tokens."""
        return max(self.data.max_token_id, int(getattr(self.documents, "max_token_id", -1)))

    @property
    def report(self) -> dict[str, dict[str, Any]]:
        """What the model's positions are compared with."""
        return {"train": {"max_length": int(self.documents.lengths.max(initial=0))}}

    def prepare_data(self) -> None:
        """Tokenize as for training, in one process per machine."""
        self.data.setup("fit")

    def setup(self, stage: str | None = None) -> None:
        """Choose the documents."""
        self.data.setup("fit")
        self.documents = training_documents(self.data, self.sample)
        self.total = None if self.data.streaming else int(self.data.report["train"]["kept"])
        self.data.trainer = self.trainer  # which rank this is

    def val_dataloader(self) -> PlanLoader:
        """This rank's share."""
        return self.data.loader_over(self.documents)


class Probe(ProbSFTModule):
    """Looks at tokens in `validate` instead of evaluating an objective; without adapters that change nothing yet."""

    def __init__(self, configured: ProbSFTModule) -> None:
        lora, quantization = configured.lora, getattr(configured.source, "quantization", "none")
        super().__init__(
            configured.source or configured.model,
            lora=lora if lora and (lora.start or quantization != "none") else None,
            logits_budget_mb=configured.logits_budget_mb,
        )
        self.configured_objective: Objective = configured.objective
        self.histogram, self.calibrated = ProbHistogram(), Calibration()

    def setup(self, stage: str) -> None:
        """As many examples as there are."""
        super().setup(stage)
        self.survey = Survey(len(self.datamodule.documents))

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a micro-batch."""
        output = token_statistics(self.model, batch, {"log_complement", "entropy"})
        self.survey.update(batch, output)
        self.calibrated.update(output)
        self.histogram.update(output.log_probs, output.log_complement)
        return {"log_probs": output.log_probs}

    def on_validation_epoch_end(self) -> None:
        """Add up the ranks."""
        self.sums, self.counts = self.survey.compute(), self.histogram.compute().cpu()
        self.bins = {name: value.cpu() for name, value in self.calibrated.compute().items()}


class _Bar(ProgressBar):
    @property
    def validation_description(self) -> str:
        """What it counts."""
        return "Probing"


class CapabilityCLI(ProbSFTCLI):
    """Reads a configuration as `validate` does, and runs a `Probe` over `TrainingRows`."""

    sample: int | None = None
    flags: Sequence[str] = ()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The base model is what is meant."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"weights": "base"})

    def before_instantiate_classes(self) -> None:
        """All rows that were asked for, whatever limits the configuration sets to a validation."""
        config = self.config[self.command]
        config.verbose = False
        trainer = config.trainer
        trainer.limit_val_batches, trainer.fast_dev_run, trainer.overfit_batches = None, False, 0.0
        self.steps, self.interval = trainer.max_steps, trainer.val_check_interval
        trainer.max_steps, trainer.callbacks = -1, None
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        """What the configuration names, and ours around it."""
        with ignore_sources():
            super().instantiate_classes()
        self.model = Probe(self.model)
        self.datamodule = TrainingRows(self.datamodule, self.sample)

    def _parse_ckpt_path(self) -> None:
        if self.config[self.command].get("ckpt_path"):
            raise UserError("--ckpt_path", "expected none with capability; --weights takes a folder with a model")

    def _callbacks(self, config: Any, given: list[Callback]) -> list[Callback]:
        return [_Bar()] if config.trainer.enable_progress_bar is not False else []

    def after_validate(self) -> None:
        """Leave the files, and say what they say."""
        if not self.trainer.is_global_zero:
            return
        found = Findings(
            self.model.sums,
            self.model.counts,
            self.model.bins,
            self.datamodule.documents,
            total=self.datamodule.total,
            streaming=self.datamodule.streaming,
            sources=self.datamodule.sources_of("train"),
            locate=lambda row: self.datamodule.data.locate("train", row)[1],
        )
        self.result = result = {
            **found.result(self.model.configured_objective, self._command()),
            "model": model_name(self.model),
            "data_fingerprint": self.datamodule.fingerprint,
            "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "world_size": self.trainer.world_size,
            "precision": str(self.trainer.precision),
            "versions": versions(),
        }
        path = self.run.capability
        with report_write_errors("--runs_dir", self.run.path):
            self.run.path.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        write_text(self.run.capability_examples, found.table())
        with (
            report_write_errors("--runs_dir", self.run.capability_picture),
            atomic_write(self.run.capability_picture) as partial,
        ):
            draw_capability(result, found.in_bins(), partial)
        print("\n".join(in_words(result)))
        print(f"files:   {path}, {self.run.capability_examples}, {self.run.capability_picture}")

    def _command(self) -> Command:
        plan, trainer = self.datamodule, self.trainer
        step = plan.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        steps = -(-(self.steps if plan.total is None else -(-plan.total // step)) // 4)
        flags = [*self.flags]
        weights = self.config[self.command].weights
        if weights != "base":
            folder = str(self.run.hf) if weights == "auto" else weights
            flags += ["--model.lora.start" if is_adapter_folder(folder) else "--model.model", folder]
        if not plan.streaming and "validation" not in plan.data.report:
            flags += ["--data.validation_fraction", "0.05"]
        validated = ["--validate_every", str(max(1, steps))]  # a pilot ends before its epoch does
        if self.interval is not None:
            validated += ["--trainer.val_check_interval", "null"]
        if trainer.check_val_every_n_epoch != 1:
            validated += ["--trainer.check_val_every_n_epoch", "1"]
        pilot = ["--trainer.max_steps", str(max(1, steps)), *validated]
        return Command(flags, self.run.path.name, pilot, str(self.run.capability))


def run_capability(sample: int | None, rest: Sequence[str]) -> CapabilityCLI:
    """The command.

    Args:
        sample: at most so many rows; None for all.
        rest: the configuration's flags, as `fit` takes them.

    Raises:
        UserError: a flag, or what `fit` would refuse of model, data and trainer.
    """
    if sample is not None and sample < 2:
        raise UserError("--sample", f"expected at least 2 rows, got {sample}")

    class Asked(CapabilityCLI):
        flags = _without(rest, ("--name", "--weights"))

    Asked.sample = sample
    cli = run_training_command(["validate", *rest], Asked)
    assert isinstance(cli, CapabilityCLI)
    return cli


def _without(args: Sequence[str], names: Sequence[str]) -> list[str]:
    """The flags but those of these names, and their values."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if skip:
            skip = False
        elif re.fullmatch("|".join(names), arg):
            skip = True
        elif arg.partition("=")[0] not in names:
            kept.append(arg)
    return kept
