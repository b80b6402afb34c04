"""What training changes: p of single tokens before and after, and what each validation set gains or loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_probsft.objectives import TokenStats
from lit_probsft.storage.atomic import atomic_write, report_write_errors, sync_file
from lit_probsft.training.callbacks import datamodule_of
from lit_probsft.training.module import ProbSFTModule

MOST_TOKENS = 20_000
"""So many tokens are followed; of a larger validation set they are spread evenly over its documents."""

SHOWN = 20
"""So many of those that moved most are kept with their text, upwards and downwards."""

_CONTEXT = 40, 12
"""Tokens of text before and behind a token that is shown."""

_GRID = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
"""Values of p at which the objective's weight is kept."""


class TokenChanges(Callback):
    """Follows p of the supervised tokens of the validation set: before the first step, where the trainer's sanity check
    measures it, and at the last validation. All ranks know all values, and a checkpoint holds them.

    Args:
        most: tokens that are followed.
    """

    def __init__(self, most: int = MOST_TOKENS) -> None:
        self.most = most
        self.before: Tensor | None = None
        """(n,), log p in nats of the followed tokens; NaN where it was not measured."""
        self.after: Tensor | None = None
        """(n,), the same at the last validation."""
        self.step = 0
        """Optimizer steps before the last validation."""
        self.calibration: dict[str, Tensor] = {}
        """`Calibration.bins` of the whole validation set, `before` and `after`."""
        self._followed: _Followed | None = None
        self._fingerprint: str | None = None
        self._sums: Tensor | None = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide, once, which tokens are followed."""
        if trainer.state.fn != "fit" or not self._follow(datamodule_of(trainer)):
            return
        assert self._followed is not None
        self._sums = torch.zeros(2, len(self._followed.numbers), dtype=torch.float32, device=pl_module.device)

    def _follow(self, datamodule: Any) -> bool:
        """Decide which tokens are followed; is there a validation set?"""
        if self._followed is None and "validation" in getattr(datamodule, "report", {}):
            documents = datamodule.documents("validation")
            self._followed = _Followed(documents, self.most)
            fingerprint = str(documents.meta["fingerprint"])
            if self._fingerprint not in (None, fingerprint):  # a run that goes on with another validation set
                self.before = self.after = None
                self.calibration = {}
            self._fingerprint = fingerprint
        return self._followed is not None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the values of a batch's followed tokens."""
        # A subclass of the module may give nothing back.
        if self._sums is None or dataloader_idx or not isinstance(outputs, Mapping) or "log_probs" not in outputs:
            return
        assert self._followed is not None
        tokens, slots = self._followed.of_batch(batch["documents"].cpu().numpy())
        if len(tokens):
            log_probs = outputs["log_probs"].to(torch.float32)[torch.from_numpy(tokens).to(self._sums.device)]
            self._sums[:, torch.from_numpy(slots)] = torch.stack([log_probs, torch.ones_like(log_probs)])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the ranks."""
        if self._sums is None:
            return
        total: Any = trainer.strategy.reduce(self._sums, reduce_op="sum")
        values, times = total.cpu()
        values, self._sums = torch.where(times > 0, values / times, torch.nan), None
        calibration = getattr(pl_module, "calibration", None)
        if not trainer.sanity_checking:
            when, self.after, self.step = "after", values, trainer.global_step
        elif trainer.ckpt_path:  # a run that goes on knows how it began
            return
        else:
            when, self.before = "before", values
        if calibration is not None:
            self.calibration[when] = calibration.cpu()

    def state_dict(self) -> dict[str, Any]:
        """What was measured."""
        names = ("before", "after", "step", "calibration")
        return {**{name: getattr(self, name) for name in names}, "fingerprint": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was measured."""
        for name in ("before", "after", "step", "calibration"):
            setattr(self, name, state_dict[name])
        self._fingerprint = state_dict["fingerprint"]

    def write(self, path: Path, trainer: L.Trainer, module: ProbSFTModule) -> dict[str, Any] | None:
        """Write `tokens.npz` (see `lit_probsft.analysis.tokens`).

        Returns:
            Facts for the run's record: `supervised` tokens of the validation set and how many of them were followed
            from `before` to `after`, with their nll and mean p; None where nothing was measured.

        Raises:
            UserError: it cannot be written.
        """
        # A run that had nothing left to train has validated nothing, and has all of it from its checkpoint.
        if not self._follow(datamodule_of(trainer)) or (self.before is None and self.after is None):
            return None
        assert self._followed is not None
        datamodule, nothing = datamodule_of(trainer), torch.full((len(self._followed.numbers),), torch.nan)
        log_p = {
            "before": nothing if self.before is None else self.before,
            "after": nothing if self.after is None else self.after,
        }
        arrays: dict[str, Any] = {**self._followed.arrays(), **{name: value.numpy() for name, value in log_p.items()}}
        arrays["weight_p"] = _GRID.numpy()
        for progress, (name, value) in enumerate(log_p.items()):
            mean_p, nll = float(value.exp().nanmean()), -float(value.nanmean())
            for key, points in (("weight", _GRID.log()), ("pull", value.double())):
                if (weight := _weight(module, points, float(progress), mean_p, nll)) is not None:
                    arrays[f"{key}_{name}"] = weight
            if name in self.calibration:
                arrays[f"calibration_{name}"] = self.calibration[name].numpy()
        change = log_p["after"] - log_p["before"]
        moved = [*_largest(change), *_largest(-change)]
        arrays["moved"] = np.array(moved, dtype=np.int64)
        texts = [self._followed.shown(slot, datamodule.tokenizer) for slot in moved]
        arrays["moved_text"] = np.array(texts, dtype=str).reshape(len(moved), 3)
        with report_write_errors("--runs_dir", path), atomic_write(path) as partial:
            with partial.open("wb") as file:
                np.savez_compressed(file, **arrays)
            sync_file(partial)
        both = change.isfinite()
        facts: dict[str, Any] = {"supervised": self._followed.total, "followed": int(both.sum()), "step": self.step}
        for name, value in log_p.items():
            if both.any():
                facts[name] = {"nll": -float(value[both].double().mean()), "mean_p": float(value[both].exp().mean())}
        return facts


class _Followed:
    """Some supervised tokens of tokenized documents, known by their numbers in the order of the documents."""

    def __init__(self, documents: Any, most: int) -> None:
        self._documents = documents
        self._ends = np.cumsum(documents.supervised)
        self.total = int(self._ends[-1]) if len(documents) else 0
        count = min(self.total, most)
        self.numbers = np.arange(count) * self.total // max(count, 1)
        self._of = np.searchsorted(self._ends, self.numbers, side="right")

    def of_batch(self, documents: Any) -> tuple[Any, Any]:
        """Which supervised tokens of a batch of documents are followed, and which place each has among them."""
        counts = self._documents.supervised[documents]
        firsts = self._ends[documents] - counts
        nothing = np.zeros(0, dtype=np.int64)
        numbers = np.concatenate(
            [nothing, *(np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True))]
        )
        if not len(self.numbers):
            return nothing, nothing
        slots = np.searchsorted(self.numbers, numbers).clip(max=len(self.numbers) - 1)
        tokens = np.flatnonzero(self.numbers[slots] == numbers)
        return tokens, slots[tokens]

    def arrays(self) -> dict[str, Any]:
        """Of each followed token its document, that one's row in the source, its position in the document, and its
        id."""
        found = [self._place(slot) for slot in range(len(self.numbers))]
        ids = [int(self._documents[document][0][position]) for document, position in found]
        document, position = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return {
            "document": document,
            "row": np.asarray(self._documents.rows)[document],
            "position": position,
            "token": np.array(ids, dtype=np.int64),
        }

    def shown(self, slot: int, tokenizer: Any) -> tuple[str, str, str]:
        """The text before a followed token, its own, and the text behind."""
        document, at = self._place(slot)
        ids = self._documents[document][0].tolist()
        parts = ids[max(at - _CONTEXT[0], 0) : at], ids[at : at + 1], ids[at + 1 : at + 1 + _CONTEXT[1]]
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        before, token, behind = (tokenizer.decode(part, **options) for part in parts)
        return before, token, behind

    def _place(self, slot: int) -> tuple[int, int]:
        document = int(self._of[slot])
        labels = self._documents[document][1]
        within = int(self.numbers[slot] - self._ends[document] + self._documents.supervised[document])
        return document, int(np.flatnonzero(labels[1:] >= 0)[within]) + 1


def _largest(change: Tensor) -> list[int]:
    """Places of the largest values above 0, the largest first."""
    order = torch.argsort(torch.nan_to_num(change, nan=-1.0), descending=True, stable=True)[:SHOWN].tolist()
    return [place for place in order if change[place] > 0]


def _weight(module: ProbSFTModule, log_p: Tensor, progress: float, mean_p: float, nll: float) -> Any:
    """The objective's weight at some log p, as an array; None where it is no function of p alone."""
    context = module.objective_state.context()
    if module.objective.needs - {"log_complement", "progress", "batch_mean_p", "batch_nll", *context}:
        return None
    log_p = log_p.clamp(max=-1e-12)  # of p = 1 some weights have no value
    complement = (-torch.expm1(log_p)).log()
    context |= {"progress": progress, "batch_mean_p": mean_p, "batch_nll": nll}
    stats = TokenStats(log_p, log_complement=complement, **context)
    try:
        return module.gradient_weight(stats).numpy()
    except Exception as error:  # of a user's own loss: no picture is worth the run that ends here
        rank_zero_warn(f"the objective's weight is not kept: {type(error).__name__}: {error}")
        return None


def forgetting(
    initial: Mapping[str, float], final: Mapping[str, float], watched: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """What training has changed on the validation set and on those that are watched.

    Args:
        initial: metrics before the first step.
        final: metrics of the last validation.
        watched: names of the sets.

    Returns:
        By set (`validation` first) and metric (nll, mean_p, ece): `initial`, `final` and `difference`; where both are
        known. A difference of nll above 0 is a loss, of mean_p a gain.
    """
    changes: dict[str, dict[str, dict[str, float]]] = {}
    for name, prefix in (("validation", "val/"), *((name, f"val/{name}/") for name in watched)):
        for metric in ("nll", "mean_p", "ece"):
            key = prefix + metric
            if key in initial and key in final:
                pair = {"initial": initial[key], "final": final[key], "difference": final[key] - initial[key]}
                changes.setdefault(name, {})[metric] = pair
    return changes
