"""What a model made of the training tokens before it was trained on them, as the numbers that objectives read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives import Objective
from lit_probsft.training.metrics import quantiles

READ = frozenset({"capability", "running_mean_p"})
"""What an objective needs that cannot be known before a model was run."""

FOLLOWED = frozenset({"batch_mean_p", "batch_nll", "running_mean_p"})
"""What it needs of the optimizer steps so far."""


_READS = ContextVar("_READS", default=True)


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Inside, an objective's source is left alone: whoever measures a capability is about to write it."""
    token = _READS.set(False)
    try:
        yield
    finally:
        _READS.reset(token)


@dataclasses.dataclass(frozen=True)
class Capability:
    """The mean of p over supervised tokens, and its quantiles.

    Args:
        mean_prob: 0 to 1.
        log_odds: 999 numbers, log(p / (1 - p)) of the .001-, .002-, ... .999-quantile.
    """

    mean_prob: float
    log_odds: tuple[float, ...]
    origin: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    """`model` and `data_fingerprint` of what was measured, where a file says so."""

    @classmethod
    def of(cls, mean_prob: float, counts: Tensor) -> Capability:
        """From a mean and the counts of a `ProbHistogram`."""
        return cls(mean_prob, tuple(quantiles(counts, [place / 1000 for place in range(1, 1000)])))

    @classmethod
    def read(cls, source: str) -> Capability:
        """From the file that `capability` has written, or the run's folder that it lies in.

        Raises:
            UserError: there is none, or it is something else.
        """
        path = Path(source).expanduser()
        path = path / "capability.json" if path.is_dir() else path
        argument = "model.objective.source"
        expected = "expected a capability.json, as `python -m lit_probsft capability` writes it"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            origin = {name: content.get(name) for name in ("model", "data_fingerprint")}
            found = cls(float(content["mean_prob"]), tuple(float(value) for value in content["permilles"]), origin)
        except OSError as error:
            raise UserError(argument, f"{expected}, got {source!r}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(argument, f"{expected}, got {source!r}, which is none") from error
        if len(found.log_odds) != 999 or not 0 <= found.mean_prob <= 1:
            raise UserError(argument, f"{expected}, got {source!r}, whose numbers are none")
        return found

    def prob_at(self, permille: int) -> float:
        """p at the quantile `permille` / 1000 (1 to 999), always less than 1."""
        odds = self.log_odds[permille - 1]
        p = 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))
        return min(p, math.nextafter(1.0, 0.0))


def parts(objective: Objective) -> Iterator[Objective]:
    """An objective and those that it wraps."""
    yield objective
    kind: Any = objective
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if isinstance(inner := getattr(objective, field.name), Objective):
            yield from parts(inner)


class ObjectiveState:
    """What an objective reads of the model before training and of the steps so far: kept here, equal on all ranks, part
    of a checkpoint.

    Args:
        objective: may name a `source` of the capability; without one (an empty one) it has to be measured.

    Raises:
        UserError: the source is none, or there are two.
    """

    MEMORY = 0.9
    """Of the running mean: its factor from one optimizer step to the next."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.wanted = objective.needs & READ
        self.capability: Capability | None = None
        self.running_mean_p: float | None = None
        self.batch_mean_p = self.batch_nll = 0.0
        """Means over the last optimizer step's supervised tokens on all ranks; 0 before the first."""
        found = {part.source for part in parts(objective) if part.needs & READ and hasattr(part, "source")}
        if len(found) > 1:
            told = ", ".join(sorted(source or "none" for source in found))
            raise UserError("model.objective.source", f"expected the same for all parts of the objective, got {told}")
        self.source: str = found.pop() if found else ""
        if self.wanted and self.source and _READS.get():
            self.set(Capability.read(self.source))

    @property
    def missing(self) -> bool:
        """Does the objective read something that is not known yet?"""
        return bool(self.wanted) and self.capability is None

    @property
    def interval(self) -> tuple[float, float]:
        """Of the objective, as far as it is known."""
        return self.objective.interval if self.capability is None else self.objective.fitted(self.capability).interval

    def set(self, capability: Capability) -> None:
        """From now on this is known."""
        self.capability, self.running_mean_p = capability, capability.mean_prob

    @property
    def follows(self) -> bool:
        """Does the objective read something of the steps so far?"""
        return bool(self.objective.needs & FOLLOWED)

    def follow(self, mean_p: float, nll: float) -> None:
        """The means of an optimizer step's tokens; what is not finite, of a step without any, changes nothing."""
        if math.isfinite(mean_p) and math.isfinite(nll):
            self.batch_mean_p, self.batch_nll = mean_p, nll
        if self.running_mean_p is not None and math.isfinite(mean_p):
            self.running_mean_p = self.MEMORY * self.running_mean_p + (1 - self.MEMORY) * mean_p

    def mismatches(self, **now: str | None) -> list[str]:
        """What the source was measured on, where that is not what is trained now.

        Args:
            now: `model` and `data_fingerprint`; None where nobody knows.
        """
        before = {} if self.capability is None else self.capability.origin
        return [
            f"{name} {before[name]}, now {value}"
            for name, value in now.items()
            if value is not None and before.get(name) not in (None, value)
        ]

    def context(self) -> dict[str, Any]:
        """What the objective is handed in, by name."""
        known = {name: getattr(self, name) for name in sorted(self.objective.needs & (READ | FOLLOWED))}
        return {name: value for name, value in known.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        state: dict[str, Any] = {"batch_mean_p": self.batch_mean_p, "batch_nll": self.batch_nll}
        if self.capability is not None:
            state |= {"mean_prob": self.capability.mean_prob, "log_odds": list(self.capability.log_odds)}
            state["running_mean_p"] = self.running_mean_p
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What was known then, whatever a source says today."""
        self.batch_mean_p, self.batch_nll = state["batch_mean_p"], state["batch_nll"]
        if "mean_prob" in state:
            self.set(Capability(state["mean_prob"], tuple(state["log_odds"])))
            self.running_mean_p = state["running_mean_p"]
