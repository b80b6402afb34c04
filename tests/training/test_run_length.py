"""The number of steps follows from the trainer's limits and the data's plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_probsft.errors import UserError
from lit_probsft.objectives import NLL
from lit_probsft.training.module import ProbSFTModule
from tests import tiny


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 20)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 2}, 6),
        ({"max_epochs": 2, "max_steps": 4}, 4),
        ({"max_epochs": 3, "limit_train_batches": 2}, 3),
        ({"max_epochs": 2, "limit_train_batches": 0.7}, 4),
        ({"max_epochs": -1, "max_steps": 5}, 5),
    ],
)
def test_the_schedule_is_as_long_as_the_training(rows: Path, options: dict[str, Any], steps: int) -> None:
    module = ProbSFTModule(tiny.model(), NLL(), tiny.sgd)
    run = tiny.trainer(accumulate_grad_batches=2, **options)
    run.fit(module, datamodule=tiny.data(rows, batch_size=4))
    assert run.global_step == module.total_steps == steps


def test_a_limit_within_an_optimizer_step_is_refused(rows: Path) -> None:
    module = ProbSFTModule(tiny.model(), NLL(), tiny.sgd)
    with pytest.raises(UserError, match="limit_train_batches: expected a multiple of accumulate_grad_batches"):
        tiny.trainer(accumulate_grad_batches=2, limit_train_batches=3).fit(module, datamodule=tiny.data(rows))
