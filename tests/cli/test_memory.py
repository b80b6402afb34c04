"""Too little memory is reported as such, whichever error hides it, and nothing else is."""

from __future__ import annotations

import sys

import pytest
import torch

from lit_probsft.cli import shell
from lit_probsft.cli.memory import memory_error
from lit_probsft.errors import UserError


def test_a_failed_allocation_of_torch_is_too_little_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert memory_error(caught.value) is not None
    assert memory_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) is not None


def test_only_too_little_memory_is_reported_as_such() -> None:
    assert memory_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert memory_error(UserError("data.train", "out of memory is what the row says")) is None


def test_the_shell_reports_a_wrong_option_caused_by_memory_as_memory(monkeypatch, capsys) -> None:
    def fail() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise UserError("model.model", "expected a model") from error

    monkeypatch.setattr(shell, "main", fail)
    monkeypatch.setattr(shell, "stop_on_sigterm", lambda: None)
    monkeypatch.setattr(sys, "argv", ["lit_probsft"])
    with pytest.raises(SystemExit) as ended:
        shell.run()
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.startswith("lit_probsft: error: memory: there is too little of it: MemoryError")
    assert message.count("\n") == 1
