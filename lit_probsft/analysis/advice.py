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

CONFIDENT = BANDS["intermediate"][1]
"""The model has a firm view of its own from this confidence on: the end of the intermediate band."""

AGREES = 0.95
"""Share of its confidence that the model gives to the labels where it agrees with them. What keeps mean p below the
strong band is then doubt, not disagreement, and -p pulls hard on doubtful tokens. Right copies reach .97 or more, long
answers written by people about .8."""

MOSTLY_IGNORANT = 0.5
"""From this share of ignorant tokens on, NLL: the label's p is then mostly below .3, where -p pulls least."""

MOST_WRONG = 0.8
"""If more of the rows than this contradict the model, too few agree with it to say that it knows the task."""

PILOT_STEPS = 20
"""Optimizer steps that a pilot has at least, unless the whole run is shorter. After a handful, some of them
warm-up, objectives hardly differ."""

EXAMPLES = "capability_examples.csv"


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


@dataclass(frozen=True)
class Beliefs:
    """What the model believes of the training rows.

    Attributes:
        mean_prob: mean p of the labels, over all tokens.
        share_above: share of tokens with p above .55.
        confidence: mean p of the most probable token.
        ignorant: share of tokens without a firm guess.
        contradicted: share of tokens where the model firmly believes in another one.
        rows: number of rows.
        wrong: number of rows that are estimated to be wrong.
        mean_prob_rest, confidence_rest: means over the other rows.
    """

    mean_prob: float
    share_above: float
    confidence: float
    ignorant: float
    contradicted: float
    rows: int
    wrong: int
    mean_prob_rest: float
    confidence_rest: float

    @property
    def case(self) -> str:
        """`ignorant`, `opposed`, `agrees`, `contradicted`, or the `level` if none of these is clear."""
        if level(self.mean_prob) == "weak" and self.confidence > CONFIDENT:
            return "opposed"
        if level(self.mean_prob) == "weak" or self.ignorant >= MOSTLY_IGNORANT:
            return "ignorant"
        if self.wrong > MOST_WRONG * self.rows:
            return "between"
        if level(self.mean_prob_rest) == "strong" or (
            self.confidence_rest >= CONFIDENT and self.mean_prob_rest >= AGREES * self.confidence_rest
        ):
            return "contradicted" if self.wrong else "agrees"
        return "between" if level(self.mean_prob) == "strong" else level(self.mean_prob)


def advise(beliefs: Beliefs, command: Command) -> dict[str, Any]:
    """`objective` (None if no single objective is best), `case`, `reason` and `commands`."""
    case, wrong = beliefs.case, beliefs.wrong
    measured = f"mean p {beliefs.mean_prob:.3f} over the supervised tokens, {beliefs.share_above:.1%} of them above .55"
    measured += f"; confidence {beliefs.confidence:.3f}, {beliefs.ignorant:.1%} ignorant"
    look = f"About {wrong} of {beliefs.rows} rows contradict the model: check the first rows of {EXAMPLES}."
    if case in ("ignorant", "opposed"):
        knows = (
            "the model knows little. NLL pulls hardest where p is small; objectives that trust the model hardly pull "
            "there. In the paper, NLL learns figlet puzzles (.01 to .07) and -p does not learn them at all."
        )
        if case == "opposed":
            knows = (
                "the model firmly believes something else almost everywhere. If the data are right, only NLL pulls "
                f"there; first check the labels and the chat template: see the first rows of {EXAMPLES}."
            )
        objective, reason = "NLL", f"{measured}: {knows}"
        commands = [command.fit("nll", "--model.objective", "NLL")]
    elif case in ("agrees", "contradicted"):
        knows = "the model knows most of it, so tokens that it finds unlikely are often noise."
        if case == "contradicted":
            knows = (
                f"over the other rows mean p is {beliefs.mean_prob_rest:.3f}, so the model knows the task, and in the "
                f"contradicted rows either the data or the model is wrong. {look} An objective that trusts the model "
                "hardly learns these rows. If they are right and the model is wrong, use NLL."
            )
        objective = "NegP"
        reason = (
            f"{measured}: {knows} In the paper, -p wins on math (.76 to .81): 10.56 against 6.49 with NLL for "
            "LLaMA-3.1-8B, 32.75 against 17.00 for Qwen2.5-Math-1.5B."
        )
        commands = [command.fit("neg-p", "--model.objective", "NegP")]
    else:
        where = "in the intermediate band" if case == "intermediate" else "between the paper's bands"
        objective = None
        reason = (
            f"{measured}: {where}, where no single objective is best. In the paper's medical runs (.50 to .59), "
            "NLL and -p differ by at most 1.7 points, in either direction. Run the short pilots and choose by correct "
            "answers on held-out rows (`predict`) or by val/accuracy, not by val/loss, which cannot be compared "
            "between objectives. RunningPower adapts by itself, but has been tried on tiny models only."
            f"{' ' + look if wrong else ''}"
        )
        commands = command.pilots()
    return {"objective": objective, "case": case, "reason": reason, "commands": commands}


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
