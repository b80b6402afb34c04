"""What objectives read about the model: its capability before training, and means over past steps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives import Objective, TokenStats
from lit_probsft.storage.atomic import read_object
from lit_probsft.training.metrics import quantiles

MEASURED = frozenset({"capability", "running_mean_p"})
"""Needs that are known only after the model has run over training rows."""

FROM_STEPS = frozenset({"batch_mean_p", "batch_nll", "running_mean_p"})
"""Needs that depend on the optimizer steps so far."""


_READ_SOURCES = ContextVar("_READ_SOURCES", default=True)


@contextlib.contextmanager
def ignore_sources() -> Iterator[None]:
    """Do not read the objective's `source` in this block, because it is about to be written."""
    token = _READ_SOURCES.set(False)
    try:
        yield
    finally:
        _READ_SOURCES.reset(token)


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
    """`model` and `data_fingerprint` of the measurement, if it comes from a file."""

    @classmethod
    def of(cls, mean_prob: float, counts: Tensor) -> Capability:
        """Build it from a mean and the counts of a `ProbHistogram`."""
        return cls(mean_prob, tuple(quantiles(counts, [permille / 1000 for permille in range(1, 1000)])))

    @classmethod
    def read(cls, source: str) -> Capability:
        """Read the file that the command `capability` wrote.

        Args:
            source: the file, or the run's folder that contains it.

        Raises:
            UserError: the file does not exist or has other content.
        """
        path = Path(source).expanduser()
        path = path / "capability.json" if path.is_dir() else path
        argument = "model.objective.source"
        expected = "expected a capability.json written by `lit_probsft capability`"
        try:
            content = read_object(path)
            origin = {name: content.get(name) for name in ("model", "data_fingerprint")}
            found = cls(float(content["mean_prob"]), tuple(float(value) for value in content["permilles"]), origin)
        except OSError as error:
            raise UserError(argument, f"{expected}, got {source!r}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(argument, f"{expected}, got {source!r} with other content") from error
        if len(found.log_odds) != 999 or not 0 <= found.mean_prob <= 1:
            raise UserError(argument, f"{expected}, got {source!r} with numbers out of range")
        return found

    def prob_at(self, permille: int) -> float:
        """p at the quantile `permille` / 1000 (1 to 999), always less than 1."""
        odds = self.log_odds[permille - 1]
        p = 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))
        return min(p, math.nextafter(1.0, 0.0))


def nested(objective: Objective) -> Iterator[Objective]:
    """An objective and the ones that it wraps."""
    yield objective
    kind: Any = objective
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if isinstance(inner := getattr(objective, field.name), Objective):
            yield from nested(inner)


class ObjectiveState:
    """What an objective reads about the model before training and about past steps; equal on all ranks, saved in
    checkpoints.

    Args:
        objective: may name a `source` of the capability. With an empty one, the capability has to be measured.

    Raises:
        UserError: the source cannot be read, or there are two.
    """

    MEMORY = 0.9
    """Weight of the running mean so far, at each optimizer step."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.wanted = objective.needs & MEASURED
        self.capability: Capability | None = None
        self.running_mean_p: float | None = None
        self.batch_mean_p = self.batch_nll = 0.0
        """Means over the supervised tokens of the last optimizer step on all ranks; 0 before the first step."""
        sources = {part.source for part in nested(objective) if part.needs & MEASURED and hasattr(part, "source")}
        if len(sources) > 1:
            got = ", ".join(sorted(source or "none" for source in sources))
            raise UserError("model.objective.source", f"expected the same for all parts of the objective, got {got}")
        self.source: str = sources.pop() if sources else ""
        if self.wanted and self.source and _READ_SOURCES.get():
            self.set(Capability.read(self.source))

    @property
    def missing(self) -> bool:
        """Whether the objective reads a capability that is not known yet."""
        return bool(self.wanted) and self.capability is None

    @property
    def interval(self) -> tuple[float, float]:
        """The objective's interval, with the capability if it is known."""
        return self.objective.interval if self.capability is None else self.objective.fitted(self.capability).interval

    def set(self, capability: Capability) -> None:
        """Set the capability; the running mean starts at its mean."""
        self.capability, self.running_mean_p = capability, capability.mean_prob

    @property
    def reads_steps(self) -> bool:
        """Whether the objective reads means over past steps."""
        return bool(self.objective.needs & FROM_STEPS)

    def add_step(self, mean_p: float, nll: float) -> None:
        """Add the means over a step's tokens; NaN, of a step without tokens, changes nothing."""
        if math.isfinite(mean_p) and math.isfinite(nll):
            self.batch_mean_p, self.batch_nll = mean_p, nll
        if self.running_mean_p is not None and math.isfinite(mean_p):
            self.running_mean_p = self.MEMORY * self.running_mean_p + (1 - self.MEMORY) * mean_p

    def warn_of_mismatches(self, **now: str | None) -> None:
        """Warn if the source was measured with another model or other data.

        Args:
            now: `model` and `data_fingerprint` of this run; None if unknown.
        """
        before = {} if self.capability is None else self.capability.origin
        for name, value in now.items():
            if value is not None and before.get(name) not in (None, value):
                mismatch = f"{name} {before[name]}, now {value}"
                rank_zero_warn(f"model.objective.source: {self.source} was measured with another {mismatch}")

    def context(self, progress: float | None = None) -> dict[str, Any]:
        """The `TokenStats` fields that the caller of the head provides to the objective, by name.

        Args:
            progress: share of the training that is done, 0 to 1; None if the objective does not read it.
        """
        known = {name: getattr(self, name) for name in sorted(self.objective.needs & (MEASURED | FROM_STEPS))}
        return {name: value for name, value in {**known, "progress": progress}.items() if value is not None}

    def logged_values(self, context: dict[str, Any]) -> dict[str, float]:
        """Numbers of the objective to log with a step, such as alpha."""
        return {} if self.missing else self.objective.logged_values(TokenStats(torch.zeros(0), **context))

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data."""
        state: dict[str, Any] = {"batch_mean_p": self.batch_mean_p, "batch_nll": self.batch_nll}
        if self.capability is not None:
            state |= {"mean_prob": self.capability.mean_prob, "log_odds": list(self.capability.log_odds)}
            state["running_mean_p"] = self.running_mean_p
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state; it wins over a source that has changed."""
        self.batch_mean_p, self.batch_nll = state["batch_mean_p"], state["batch_nll"]
        if "mean_prob" in state:
            self.set(Capability(state["mean_prob"], tuple(state["log_odds"])))
            self.running_mean_p = state["running_mean_p"]
