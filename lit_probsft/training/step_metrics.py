"""Metrics of the optimizer steps, and how they are logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor

from lit_probsft.objectives import Objective
from lit_probsft.training.lightning_internals import forget_logged
from lit_probsft.training.metrics import TokenMeans, sources_of

if TYPE_CHECKING:
    from lit_probsft.training.module import ProbSFTModule


class StepMetrics(TokenMeans):
    """Means over the supervised tokens of an optimizer step.

    Attributes:
        objective_values: numbers of the objective that change or were measured, such as alpha.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self.objective_values: dict[str, float] = {}

    def configure(self, datamodule: Any) -> None:
        """Set the sources of the training data."""
        self.set_sources(sources_of(datamodule, "train"))

    def tokens_inside(self, trainer: L.Trainer) -> Tensor:
        """The step's number of tokens in the objective's interval so far, on all ranks."""
        inside: Any = trainer.strategy.reduce(self.sums[self.NAMES.index("inside")].clone(), reduce_op="sum")
        return cast("Tensor", inside)

    def log(self, module: ProbSFTModule) -> None:
        """Log the means of the step over all ranks, with its learning rate and gradient norm; resets them."""
        gradients = module.gradients
        assert gradients.norm is not None
        means = {f"train/{name}": value for name, value in self.compute().items()}
        of_sources = [f"train/{name}/{source}" for source in self.sources for name in ("nll", "mean_p")]
        forget_logged(module.trainer, [name for name in of_sources if name not in means])
        self.reset()
        shown = {name: means.pop(name) for name in ("train/loss", "train/nll", "train/mean_p")}
        module.log_dict({**shown, "lr": torch.tensor(gradients.lr)}, prog_bar=True)
        means |= {f"train/{name}": torch.tensor(value) for name, value in self.objective_values.items()}
        skipped = float(gradients.skipped_steps)
        module.log_dict({**means, "train/grad_norm": gradients.norm, "train/skipped_steps": skipped})
