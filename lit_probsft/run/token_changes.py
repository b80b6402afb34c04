"""How training changes the probability of single validation tokens: tokens.npz."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lit_probsft.objectives import TokenStats
from lit_probsft.run.followed_tokens import FollowedTokens
from lit_probsft.storage.atomic import atomic_write, report_write_errors, sync_file
from lit_probsft.training.callbacks import datamodule_of
from lit_probsft.training.module import ProbSFTModule

MOST_TOKENS = 20_000
"""The number of tokens that are followed."""

SHOWN = 20
"""The number of tokens stored with their text, for each direction: the ones that rose most and that fell most."""

_GRID = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
"""Values of p at which the objective's weight is stored."""


class TokenChanges(Callback):
    """Follows the probability p of supervised validation tokens.

    p is measured before the first step, by the trainer's sanity check, and at each validation; the last validation
    counts. All ranks know all values, and checkpoints hold them.

    Args:
        most: the largest number of tokens to follow.
    """

    def __init__(self, most: int = MOST_TOKENS) -> None:
        self.most = most
        self.before: Tensor | None = None
        """(n,), log p (nats) of the followed tokens before the first step; NaN if not measured."""
        self.after: Tensor | None = None
        """(n,), log p (nats) at the last validation."""
        self.step = 0
        """The optimizer step of the last validation."""
        self.calibration: dict[str, Tensor] = {}
        """`Calibration.bins` of the whole validation set, `before` and `after`."""
        self._followed: FollowedTokens | None = None
        self._fingerprint: str | None = None
        self._sums: Tensor | None = None

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not self._follow(datamodule_of(trainer)):
            return
        assert self._followed is not None
        self._sums = torch.zeros(2, len(self._followed.numbers), dtype=torch.float32, device=pl_module.device)

    def _follow(self, datamodule: Any) -> bool:
        """Choose the tokens to follow, once; return whether there is a validation set."""
        if self._followed is None and "validation" in getattr(datamodule, "report", {}):
            documents = datamodule.documents("validation")
            self._followed = FollowedTokens(documents, self.most)
            fingerprint = str(documents.meta["fingerprint"])
            if self._fingerprint not in (None, fingerprint):  # a resumed run with another validation set
                self.before = self.after = None
                self.calibration = {}
            self._fingerprint = fingerprint
        return self._followed is not None

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # A subclass of the module may return nothing.
        if self._sums is None or dataloader_idx or not isinstance(outputs, Mapping) or "log_probs" not in outputs:
            return
        assert self._followed is not None
        tokens, slots = self._followed.of_batch(batch["documents"].cpu().numpy())
        if len(tokens):
            log_probs = outputs["log_probs"].to(torch.float32)[torch.from_numpy(tokens).to(self._sums.device)]
            self._sums[:, torch.from_numpy(slots)] = torch.stack([log_probs, torch.ones_like(log_probs)])

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._sums is None:
            return
        total: Any = trainer.strategy.reduce(self._sums, reduce_op="sum")
        values, times = total.cpu()
        values, self._sums = torch.where(times > 0, values / times, torch.nan), None
        calibration = getattr(pl_module, "calibration", None)
        if not trainer.sanity_checking:
            when, self.after, self.step = "after", values, trainer.global_step
        elif trainer.ckpt_path:  # a resumed run has the values from its checkpoint
            return
        else:
            when, self.before = "before", values
        if calibration is not None:
            self.calibration[when] = calibration.cpu()

    @override
    def state_dict(self) -> dict[str, Any]:
        names = ("before", "after", "step", "calibration")
        return {**{name: getattr(self, name) for name in names}, "fingerprint": self._fingerprint}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in ("before", "after", "step", "calibration"):
            setattr(self, name, state_dict[name])
        self._fingerprint = state_dict["fingerprint"]

    def write(self, path: Path, trainer: L.Trainer, module: ProbSFTModule) -> dict[str, Any] | None:
        """Write `tokens.npz` (see `lit_probsft.analysis.tokens`).

        Returns:
            Facts for run.json: the number of `supervised` tokens in the validation set, how many were `followed` from
            `before` to `after`, and their nll (nats) and mean p. None if nothing was measured.

        Raises:
            UserError: the file could not be written.
        """
        # If nothing was left to train, nothing was validated: all values come from the checkpoint.
        if not self._follow(datamodule_of(trainer)) or (self.before is None and self.after is None):
            return None
        assert self._followed is not None
        unknown = torch.full((len(self._followed.numbers),), torch.nan)
        log_p = {
            "before": unknown if self.before is None else self.before,
            "after": unknown if self.after is None else self.after,
        }
        arrays = {
            **self._followed.arrays(),
            **{name: value.numpy() for name, value in log_p.items()},
            **self._curves(log_p, module),
            **self._moved(log_p["after"] - log_p["before"], datamodule_of(trainer)),
        }
        with report_write_errors("--runs_dir", path), atomic_write(path) as partial:
            with partial.open("wb") as file:
                np.savez_compressed(file, **arrays)
            sync_file(partial)
        both = (log_p["after"] - log_p["before"]).isfinite()
        facts: dict[str, Any] = {"supervised": self._followed.total, "followed": int(both.sum()), "step": self.step}
        for name, value in log_p.items():
            if both.any():
                facts[name] = {"nll": -float(value[both].double().mean()), "mean_p": float(value[both].exp().mean())}
        return facts

    def _curves(self, log_p: Mapping[str, Tensor], module: ProbSFTModule) -> dict[str, Any]:
        """Before and after: the objective's weight over p and at the followed tokens, and the calibration."""
        arrays: dict[str, Any] = {"weight_p": _GRID.numpy()}
        for progress, (name, value) in enumerate(log_p.items()):
            mean_p, nll = float(value.exp().nanmean()), -float(value.nanmean())
            for key, points in (("weight", _GRID.log()), ("pull", value.double())):
                if (weight := _weight(module, points, float(progress), mean_p, nll)) is not None:
                    arrays[f"{key}_{name}"] = weight
            if name in self.calibration:
                arrays[f"calibration_{name}"] = self.calibration[name].numpy()
        return arrays

    def _moved(self, change: Tensor, datamodule: Any) -> dict[str, Any]:
        """The slots of the tokens that rose most and fell most, and their text."""
        assert self._followed is not None
        slots = [*_largest(change), *_largest(-change)]
        texts = [self._followed.text_around(slot, datamodule.tokenizer) for slot in slots]
        return {
            "moved": np.array(slots, dtype=np.int64),
            "moved_text": np.array(texts, dtype=str).reshape(len(slots), 3),
        }


def _largest(change: Tensor) -> list[int]:
    """Indices of the largest values above 0, the largest first."""
    order = torch.argsort(torch.nan_to_num(change, nan=-1.0), descending=True, stable=True)[:SHOWN].tolist()
    return [place for place in order if change[place] > 0]


def _weight(module: ProbSFTModule, log_p: Tensor, progress: float, mean_p: float, nll: float) -> Any:
    """The objective's weight at some log p, as an array; None if it is not a function of p alone."""
    context = module.objective_state.context()
    if module.objective.needs - {"log_complement", "progress", "batch_mean_p", "batch_nll", *context}:
        return None
    log_p = log_p.clamp(max=-1e-12)  # some weights are undefined at p = 1
    complement = (-torch.expm1(log_p)).log()
    context |= {"progress": progress, "batch_mean_p": mean_p, "batch_nll": nll}
    stats = TokenStats(log_p, log_complement=complement, **context)
    try:
        return module.gradient_weight(stats).numpy()
    except Exception as error:  # of a user's own loss: a missing curve must not end the run
        rank_zero_warn(f"the objective's weight is not stored: {type(error).__name__}: {error}")
        return None
