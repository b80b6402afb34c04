"""Which objective suits a model, judging by p of its training tokens before training."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_probsft.objectives import NLL, LogOneMinusP, NegP, Objective, Power, TokenStats
from lit_probsft.training.metrics import ProbHistogram

PAPER: dict[str, Any] = {
    "source": "Li et al. 2025, arXiv 2510.00526",
    "mean_prob": {
        "strong: math": [0.76, 0.81],
        "intermediate: medicine": [0.50, 0.59],
        "weak: figlet puzzles": [0.01, 0.07],
    },
    "share_above_0.55 (math)": {
        "LLaMA-3.1-8B": 0.728,
        "DeepSeekMath-7B": 0.767,
        "Qwen2.5-Math-1.5B": 0.806,
        "Qwen2.5-Math-7B": 0.812,
    },
    "quantiles (math, Qwen2.5-Math-1.5B)": {
        "0.05": 0.03807,
        "0.1": 0.17539,
        "0.2": 0.58584,
        "0.3": 0.86903,
        "0.4": 0.97006,
        "0.5": 0.99360,
        "0.6": 0.99856,
        "0.7": 0.999644,
        "0.8": 0.9999082,
        "0.9": 0.99998045,
    },
}
"""What the paper reports about its base models."""

DEAD = 0.05
"""A weight below this share of its maximum counts as no weight."""

BANDS = {"weak": (0.0, 0.10), "intermediate": (0.45, 0.65), "strong": (0.75, 1.0)}
"""Mean p of each level, both ends included; the stretches in between are the level `between`."""


def level(mean_prob: float) -> str:
    """`weak`, `intermediate` or `strong` if mean p is in that band, otherwise `between`."""
    return next((name for name, (low, high) in BANDS.items() if low <= mean_prob <= high), "between")


def check_sample(mean_prob: float, interval: tuple[float, float] | None, rows: int) -> dict[str, Any]:
    """Whether a sample settles the level: whether the interval of mean p is within one band or one stretch between.

    Returns:
        `enough`, and `rows_needed`, an estimate; None if the sample is large enough or nothing can be said.
    """
    if interval is None:
        return {"enough": False, "rows_needed": None}
    bands_passed = [sum((end >= low) + (end > high) for low, high in BANDS.values()) for end in interval]
    if bands_passed[0] == bands_passed[1]:
        return {"enough": True, "rows_needed": None}
    edges = [edge for band in BANDS.values() for edge in band if 0 < edge < 1]
    half, gap = (interval[1] - interval[0]) / 2, min(abs(mean_prob - edge) for edge in edges)
    return {"enough": False, "rows_needed": math.ceil(rows * (half / gap) ** 2) if gap > 0 else None}


@dataclass(frozen=True)
class Command:
    """The user's command, from which the advice builds commands.

    Attributes:
        flags: flags of the configuration, without --name.
        name: name of the run.
        pilot: flags for a short run.
        source: path of capability.json.
    """

    flags: Sequence[str]
    name: str
    pilot: Sequence[str]
    source: str

    def fit(self, suffix: str, *flags: str) -> str:
        """A `fit` command for a shell; the run's name gets the suffix."""
        return shlex.join(
            ["python", "-m", "lit_probsft", "fit", *self.flags, "--name", f"{self.name}-{suffix}", *flags]
        )

    def pilots(self) -> list[str]:
        """Commands for short runs that differ in the objective only."""
        objectives = {
            "nll": ["NLL"],
            "power": ["Power", "--model.objective.alpha", "0.5"],
            "neg-p": ["NegP"],
            "running": ["RunningPower", "--model.objective.source", self.source],
        }
        return [self.fit(f"pilot-{k}", "--model.objective", *words, *self.pilot) for k, words in objectives.items()]


def advise(mean_prob: float, share_above: float, command: Command) -> dict[str, Any]:
    """`objective` (None if no single objective is best), `reason` and `commands`."""
    measured = f"mean p {mean_prob:.3f} over the supervised tokens, {share_above:.1%} of them above .55"
    if level(mean_prob) == "weak":
        return {
            "objective": "NLL",
            "reason": f"{measured}: the model knows little. NLL pulls hardest where p is small; objectives that trust "
            "the model hardly pull there. In the paper, NLL learns figlet puzzles (.01 to .07) and -p does not learn "
            "them at all.",
            "commands": [command.fit("nll", "--model.objective", "NLL")],
        }
    if level(mean_prob) == "strong":
        return {
            "objective": "NegP",
            "reason": f"{measured}: the model knows most of it, so tokens that it finds unlikely are often noise. In "
            "the paper, -p wins on math (.76 to .81): 10.56 against 6.49 with NLL for LLaMA-3.1-8B, 32.75 against "
            "17.00 for Qwen2.5-Math-1.5B.",
            "commands": [command.fit("neg-p", "--model.objective", "NegP")],
        }
    where = "in the intermediate band" if level(mean_prob) == "intermediate" else "between the paper's bands"
    return {
        "objective": None,
        "reason": f"{measured}: {where}, where no single objective is best. In the paper's medical runs (.50 to .59), "
        "NLL and -p differ by at most 1.7 points, in either direction. Run the short pilots and choose by correct "
        "answers on held-out rows (`predict`) or by val/accuracy, not by val/loss, which cannot be compared between "
        "objectives. RunningPower adapts by itself, but has been tried on tiny models only.",
        "commands": command.pilots(),
    }


def weights(objective: Objective, counts: Tensor) -> dict[str, float] | None:
    """An objective's weight W over the tokens of a `ProbHistogram`: `mean`, its mean, and `dead`, the share of the
    probability left to learn (the sum of 1 - p) where W is below `DEAD` of its maximum over 0 < p < 1.

    None if W is not a non-negative function of p alone.
    """
    if not objective.has_mass:
        return None
    odds = ProbHistogram.centres()
    log_probs, log_complement = torch.nn.functional.logsigmoid(torch.stack([odds, -odds]))
    weight = objective.gradient_weight(TokenStats(log_probs, log_complement=log_complement)).double()
    seen = counts.double().cpu()
    left = seen * log_complement.exp()
    dead = left[weight < DEAD * weight.max()].sum() / left.sum()
    return {"mean": float((seen * weight).sum() / seen.sum()), "dead": float(dead)}


def compare(chosen: Objective, counts: Tensor) -> list[dict[str, Any]]:
    """`weights` of the configuration's objective, first, and of the objectives that the advice mentions."""
    others = (NLL(), Power(0.5), NegP(), Power(10.0), LogOneMinusP())
    found = []
    for objective in (chosen, *(other for other in others if other != chosen)):
        values: dict[str, Any] = weights(objective, counts) or {"mean": None, "dead": None}
        found.append({"objective": repr(objective), **values, "chosen": objective is chosen})
    return found


def warnings(compared: Sequence[dict[str, Any]]) -> list[str]:
    """Warnings about objectives whose weight vanishes over most of the probability left to learn."""
    return [
        f"dead zone: {entry['objective']}{' (your objective)' if entry['chosen'] else ''} hardly pulls on "
        f"{entry['dead']:.0%} of what is left to learn: its weight there is below {DEAD:.0%} of its maximum"
        for entry in compared
        if entry["dead"] is not None and entry["dead"] > 0.5
    ]
