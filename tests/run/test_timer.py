"""The seconds and validations of a run, across interruptions."""

from __future__ import annotations

from lit_probsft.run.timer import RunTimer


def test_checkpoints_of_earlier_versions_restore_the_first_validation() -> None:
    validations = {"first": {"step": 0, "nll": 2.5}}
    callbacks = {"Ledger": {"seen": validations, "of": "abc"}}
    timer = RunTimer()
    timer.load_state_dict(callbacks[timer.state_key])
    assert timer.facts()["validations"] == validations
