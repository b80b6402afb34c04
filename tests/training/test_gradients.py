"""Gradients that are not finite skip the step; the others are clipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.errors import UserError
from lit_probsft.objectives import NLL, TokenStats
from lit_probsft.training.gradients import total_norm
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 20)


class Broken(ProbSFTModule):
    """Its loss is not finite at the steps in `bad`."""

    bad: set[int] = {1}
    kind = "inf"

    def token_loss(self, tokens: TokenStats) -> torch.Tensor:
        loss = super().token_loss(tokens)
        if self.training and self.global_step in self.bad:
            # inf has a finite gradient, nan has not: both must be seen
            loss = loss + math.inf if self.kind == "inf" else loss * math.nan
        return loss


@pytest.mark.parametrize("kind", ["inf", "nan"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_counted(rows: Path, kind: str, accumulate: int) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Broken):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            seen.append(tiny.weights(self))

    module = Watched(tiny.model(), NLL(), optimizer=tiny.adamw, schedule=Schedule("constant", 0))
    module.kind = kind
    run = tiny.trainer(accumulate_grad_batches=accumulate)
    run.fit(module, datamodule=tiny.data(rows, batch_size=8 // accumulate, length_pool=0))
    assert module.skipped_steps == 1
    assert run.global_step == 3
    steps = seen[accumulate - 1 :: accumulate]
    tiny.assert_close(steps[0], steps[1], 0.0)
    assert any(not torch.equal(steps[1][k], steps[2][k]) for k in steps[1])
    assert all(value.isfinite().all() for value in steps[2].values())


def test_skipped_steps_that_are_not_in_a_row_do_not_end_the_run(tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 30)
    module = Broken(tiny.model(), NLL(), optimizer=tiny.adamw)
    module.bad = {step for step in range(30) if step % 7}
    tiny.trainer(max_epochs=2).fit(module, datamodule=tiny.data(rows, batch_size=2))
    assert module.trainer.global_step == 30
    assert module.skipped_steps == 25


def test_ten_skipped_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 30)
    module = Broken(tiny.model(), NLL(), optimizer=tiny.adamw)
    module.bad = set(range(3, 100))
    with pytest.raises(UserError, match="10 optimizer steps in a row"):
        tiny.trainer(max_epochs=20).fit(module, datamodule=tiny.data(rows, batch_size=2))
    assert module.skipped_steps == 10
    assert module.trainer.global_step == 13


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(rows: Path, algorithm: str) -> None:
    """With SGD and a rate of one, a step is the clipped gradient itself."""
    start = tiny.weights(ProbSFTModule(tiny.model(torch.float64)))
    module = ProbSFTModule(
        tiny.model(torch.float64), NLL(), lambda p: torch.optim.SGD(p, lr=1.0), schedule=Schedule("constant", 0)
    )
    run = tiny.trainer(max_steps=1, gradient_clip_val=0.01, gradient_clip_algorithm=algorithm)
    run.fit(module, datamodule=tiny.data(rows))
    moved = torch.cat([(start[k] - v).flatten() for k, v in tiny.weights(module).items()])
    assert float(run.callback_metrics["train/grad_norm"]) > 0.1
    assert float(moved.norm() if algorithm == "norm" else moved.abs().max()) == pytest.approx(0.01, rel=1e-3)


def test_the_gradient_norm_does_not_overflow_where_fp32_squares_do() -> None:
    huge = [torch.full((3,), 1e30), torch.full((4,), 1e30)]
    assert total_norm(huge).item() == pytest.approx(math.sqrt(7) * 1e30)
