"""What type hints accept and how messages describe them."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Callable, Literal  # noqa: UP035  without arguments, as in Lightning

import pytest
import torch

from lit_probsft.cli.config.hints import accepts, class_families, described, is_factory, options_of
from lit_probsft.objectives import Objective, Power
from lit_probsft.training.optim import OptimizerFactory, Schedule


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (int | float | None, "a number or null"),
        (bool, "true or false"),
        (bool | int, "true, false or a whole number"),
        (bool | Literal["warn"] | None, "true, false, warn or null"),
        (Literal["a", "b"] | None, "one of a, b or null"),
        (float | torch.Tensor, "a number"),
        (tuple[float, float], "a list of 2"),
        (tuple[float, ...], "a list"),
        (Iterable[int] | None, "a list or null"),
        (dict[str, Objective], "a mapping"),
        (Objective, ""),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert described(hint) == words


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [3], [2.5, True, "3", None]),
        (tuple[float, float], [[0.9, 0.95]], [[0.9], 0.9]),
        (tuple[float, ...], [[], [0.9]], [0.9]),
        (float, [3, 2.5, "1e-3"], ["nan", "abc", False]),
        (bool | None, [True, None], [1, "true"]),
        (Literal[16, "bf16"], [16, "bf16"], ["fp16"]),
        (list[int], [[1]], [1, "1"]),
        (dict[str, int], [{}], [[]]),
        (float | torch.Tensor, [1.0], ["abc"]),
        (Objective | None, [None], ["NLL"]),
        (Any, [1, "a", None], []),
    ],
)
def test_accepted_values(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in [*good, *bad] if accepts(value, hint)] == good


def test_classes_of_a_hint() -> None:
    assert class_families(Objective | str | None) == [Objective]
    assert class_families(OptimizerFactory) == [torch.optim.Optimizer]
    assert is_factory(OptimizerFactory)
    assert class_families(Callable) == []  # type: ignore[arg-type]
    assert not is_factory(Callable)
    assert class_families(Schedule) == [Schedule]
    assert class_families(int | list[Objective] | torch.Tensor | HTTPStatus | Path) == []


def test_options_of_a_class_that_passes_on_others_are_unknown() -> None:
    def passes_on(a: int, **others: int) -> None: ...

    options = options_of(Power)
    assert options is not None
    assert list(options) == ["alpha"]
    assert not options["alpha"].required
    assert options_of(passes_on) is None
    assert options_of(3) is None
