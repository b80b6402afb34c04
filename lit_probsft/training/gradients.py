"""The gradient of an optimizer step: its norm, clipping, and skipping a step that is not finite."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.parallel.strategies import DeepSpeed
from lit_probsft.training.checkpoints import Checkpoints
from lit_probsft.training.step_end import StepEnd


class Gradients:
    """Clips the gradient of a step, or skips the step if its gradient is not finite; remembers what it did.

    Attributes:
        norm: of the present step before clipping; None until the step is made.
        lr: learning rate of the present step.
        skipped: whether the last step was skipped.
        skipped_steps: their number so far.
    """

    def __init__(self) -> None:
        self.norm: Tensor | None = None
        self.lr = math.nan
        self.skipped = False
        self.skipped_steps = 0

    def clip(
        self,
        optimizer: torch.optim.Optimizer,
        limit: float | None,
        algorithm: str | None,
        divisor: Tensor | None = None,
    ) -> None:
        """Divide the gradients by `divisor`, take their norm and clip them; remove them if they are not finite.

        Args:
            optimizer: over the parameters.
            limit: of the norm or of each value; None or 0 clips nothing.
            algorithm: `norm` or `value`.
            divisor: scalar, at least 1 is taken.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if divisor is not None:
            for gradient in gradients:
                gradient.div_(divisor.clamp(min=1).to(gradient.dtype))
        norm = total_norm(gradients)
        self.norm = getattr(norm, "full_tensor", lambda: norm)()
        self._count(not math.isfinite(self.norm.item()))
        if self.skipped:
            for parameter in parameters:
                parameter.grad = None  # the optimizer then leaves weights and moments unchanged
        elif limit and algorithm == "value":
            nn.utils.clip_grad_value_(parameters, limit)
        elif limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def read(self, strategy: DeepSpeed) -> None:
        """Take over what DeepSpeed's engine did, which clips, skips and measures itself."""
        self.norm = torch.tensor(strategy.grad_norm)
        self._count(strategy.step_skipped)

    def _count(self, skipped: bool) -> None:
        self.skipped = skipped
        self.skipped_steps += skipped


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, in double.

    In fp32 the squares of the gradients of Power with a negative alpha overflow.
    """
    if not gradients:
        return torch.zeros(())
    wide = torch.float32 if gradients[0].device.type == "mps" else torch.float64
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=wide) for gradient in gradients])
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm


class NonFiniteGuard(StepEnd):
    """Ends the run after too many skipped optimizer steps in a row, with a checkpoint of the last good weights.

    A skipped step changes neither weights nor moments, so the present weights are the last good ones.
    """

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self._in_a_row = 0

    @override
    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        gradients: Any = pl_module.gradients
        self._in_a_row = self._in_a_row + 1 if gradients.skipped else 0
        if self._in_a_row == 1:
            rank_zero_warn(f"optimizer step {trainer.global_step} is skipped: its loss or gradient is not finite")
        if self._in_a_row < self.limit:
            return
        saved = ""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                saved = f"; the last good weights are in {callback.flush(trainer)}"
        raise UserError(
            "training",
            f"expected a finite loss and gradient, but {self.limit} optimizer steps in a row were not finite (up to "
            f"step {trainer.global_step}): lower the learning rate, or look at the data of these steps{saved}",
        )
