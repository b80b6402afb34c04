"""Draws the README's picture: the loss f(p) of four objectives, and the pull of each on the target's logit.

python -m benchmarks.objectives writes results/objectives.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from lit_probsft.objectives import NLL, NegP, Objective, Power, TokenStats

PICTURE = Path(__file__).parent / "results" / "objectives.svg"

OBJECTIVES: dict[str, Objective] = {
    "NLL": NLL(),
    "Power(0.5)": Power(0.5),
    "NegP": NegP(),
    "Power(10)": Power(10.0),
}


def draw(path: Path) -> None:
    """Write the picture; the same versions write the same bytes."""
    p = torch.linspace(0.002, 0.998, 250, dtype=torch.float64)
    with matplotlib.rc_context({"svg.hashsalt": "lit_probsft", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8.4, 3.0), layout="constrained", facecolor="white")
        losses, pulls = figure.subplots(1, 2)
        for name, objective in OBJECTIVES.items():
            pull = objective.gradient_weight(p.log())
            losses.plot(p, objective.loss(TokenStats(log_probs=p.log())), label=name, linewidth=1.8)
            pulls.plot(p, pull / pull.max(), label=name, linewidth=1.8)
        losses.set(title="loss f(p)", ylim=(0, 3))
        pulls.set(title="pull on the target's logit, relative to its maximum", ylim=(0, 1.05))
        for axes in (losses, pulls):
            axes.set(xlim=(0, 1), xlabel="p of the target token")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        losses.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    draw(target)
    print(target)
