"""Runs a model over its training rows without training it, under any strategy and on any number of devices."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor
from typing_extensions import override

from lit_probsft.analysis.survey import Survey
from lit_probsft.cli.fit import ProbSFTCLI
from lit_probsft.data import InstructionDataModule
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.store import Documents
from lit_probsft.errors import UserError
from lit_probsft.objectives import Objective
from lit_probsft.training.callbacks import ProgressBar
from lit_probsft.training.evaluation_metrics import not_a_number
from lit_probsft.training.fitting import ignore_sources
from lit_probsft.training.metrics import Calibration, ProbHistogram
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from lit_probsft.training.probing import token_statistics, training_documents


class Probe(ProbSFTModule):
    """Measures p of the training tokens: `trainer.validate(Probe(module, data))` visits each training row once.

    Adapters that do not change the model yet are left out.

    Args:
        module: names the model, its adapters and the memory for logits; its model is not loaded.
        data: not set up.
        sample: number of rows to draw at random, or to take from the start of a stream; None takes all.

    Raises:
        UserError: for a stream without `sample`.

    Attributes:
        documents: the rows to measure, after `setup`.
        total: number of training rows; None in a stream.
        sums: of `Survey` over all ranks, after `validate`.
        counts: of `ProbHistogram`.
        bins: of `Calibration`.
    """

    def __init__(self, module: ProbSFTModule, data: InstructionDataModule, sample: int | None = None) -> None:
        if data.streaming and sample is None:
            raise UserError("--sample", "expected a number of rows with data.streaming, since a stream has no end")
        quantization = getattr(module.source, "quantization", "none")
        super().__init__(
            module.source or module.model,
            lora=module.lora if module.lora and (module.lora.start or quantization != "none") else None,
            logits_budget_mb=module.logits_budget_mb,
        )
        self.data, self.sample = data, sample
        self.histogram, self.calibrated = ProbHistogram(), Calibration()
        self.survey: Survey
        self.documents: Documents
        self.total: int | None = None

    @property
    def datamodule(self) -> InstructionDataModule:
        """The data that were handed in; the trainer has none."""
        return self.data

    @override
    def prepare_data(self) -> None:
        self.data.setup("fit")

    @override
    def setup(self, stage: str) -> None:
        self.data.setup("fit")
        self.documents = training_documents(self.data, self.sample)
        self.total = None if self.data.streaming else int(self.data.report["train"]["kept"])
        self.data.trainer = self.trainer  # tells the ranks apart
        self.survey = Survey(len(self.documents))
        super().setup(stage)

    @override
    def check_fits(self, largest: int, longest: int) -> None:
        # Only the measured documents have to fit, and a stream's report does not have theirs.
        largest = max(largest, self.documents.max_token_id)
        super().check_fits(largest, int(self.documents.lengths.max(initial=0)))

    @override
    def val_dataloader(self) -> PlanLoader:
        return self.data.loader_over(self.documents)

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        output = token_statistics(self.model, batch, {"log_complement", "entropy", "top_token"})
        self.survey.update(batch, output)
        self.calibrated.update(output)
        self.histogram.update(output.log_probs, output.log_complement)
        return {"log_probs": output.log_probs}

    @override
    def on_validation_epoch_end(self) -> None:
        self.sums, self.counts = self.survey.compute(), self.histogram.compute().cpu()
        if any(np.isnan(sums).any() for sums in self.sums.values()):
            raise not_a_number("mean p", self.trainer.global_step)
        self.bins = {name: value.cpu() for name, value in self.calibrated.compute().items()}


class ProbeCLI(ProbSFTCLI):
    """Reads a configuration as `validate` does, and validates a `Probe` of its model.

    Attributes:
        objective, schedule: the configuration's.
        result: the content of capability.json; set by the command, on rank 0.
    """

    result: dict[str, Any]

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--sample", type=int | None, default=None, help="number of rows to measure")

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.command]
        trainer = config.trainer
        config.verbose, trainer.callbacks = False, None
        # Limits on validation do not apply: the probe visits every row, or those of the sample.
        trainer.limit_val_batches, trainer.fast_dev_run, trainer.overfit_batches = None, False, 0.0
        super().before_instantiate_classes()

    @override
    def instantiate_classes(self) -> None:
        with ignore_sources():  # an objective may name the capability.json that this command is about to write
            super().instantiate_classes()
        self.objective: Objective = self.model.objective
        self.schedule: Schedule = self.model.schedule
        self.model, self.datamodule = Probe(self.model, self.datamodule, self.config[self.command].sample), None

    @override
    def read_hyperparameters(self) -> None:
        if self.config[self.command].get("ckpt_path"):
            raise UserError("--ckpt_path", "capability takes no checkpoint; give a model's folder with --weights")

    @override
    def _callbacks(self, config: Any, given: list[Callback]) -> list[Callback]:
        return [_ProbingBar()] if config.trainer.enable_progress_bar is not False else []


class _ProbingBar(ProgressBar):
    validation_description = "Probing"
