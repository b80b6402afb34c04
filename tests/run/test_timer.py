"""The seconds and validations of a run, across interruptions."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from lit_probsft.run import timer as timer_module
from lit_probsft.run.timer import RunTimer


def test_checkpoints_of_earlier_versions_restore_the_first_validation() -> None:
    validations = {"first": {"step": 0, "nll": 2.5}}
    callbacks = {"Ledger": {"seen": validations, "of": "abc"}}
    timer = RunTimer()
    timer.load_state_dict(callbacks[timer.state_key])
    assert timer.facts()["validations"] == validations


def test_seconds_of_an_evaluation_are_neither_training_nor_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, trainer = [0.0], Mock(ckpt_path=None, sanity_checking=False, callback_metrics={})
    monkeypatch.setattr(timer_module.time, "monotonic", lambda: clock[0])
    arguments: Any = (trainer, Mock(initial_metrics={}))
    timer = RunTimer()
    timer.on_train_start(*arguments)
    clock[0] += 1
    timer.on_validation_start(*arguments)
    clock[0] += 2
    with timer.evaluating():
        clock[0] += 4
    clock[0] += 8
    timer.on_validation_end(*arguments)
    with timer.evaluating():
        clock[0] += 16
    clock[0] += 32
    timer.on_train_end(*arguments)
    assert timer.seconds == {"training": 1 + 32, "validation": 2 + 8, "evaluation": 4 + 16, "total": 63}
