"""The strategy `DeepSpeed` in one process."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import pytest
import torch

from lit_probsft.parallel import DeepSpeed


def set_up_processes(monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> None:
    monkeypatch.setattr(DeepSpeed, "__init__", lambda self: None)
    monkeypatch.setattr(DeepSpeed, "root_device", torch.device(device))
    for name in ("set_world_ranks", "_init_deepspeed_distributed"):
        monkeypatch.setattr(DeepSpeed, name, lambda self: None)
    DeepSpeed().setup_distributed()


def write_lock(folder: Path, minutes: float) -> Path:
    lock = folder / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    written = time.time() - 60 * minutes
    os.utime(lock, (written, written))
    return lock


@pytest.mark.parametrize("chosen", [True, False])
def test_an_old_lock_of_a_build_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    if chosen:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        lock = write_lock(tmp_path, minutes=6)
    else:
        from torch.utils import cpp_extension

        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        monkeypatch.setattr(cpp_extension, "get_default_build_root", lambda: str(tmp_path))
        lock = write_lock(Path(cpp_extension._get_build_directory("other", False)).parent, minutes=6)
    with pytest.warns(match=f"DeepSpeed waits for {lock}, which a killed build may have left; delete it if") as found:
        set_up_processes(monkeypatch)
    assert len(found) == 1


@pytest.mark.parametrize(("minutes", "device"), [(4, "cpu"), (6, "meta")])
def test_a_recent_lock_or_one_that_nobody_waits_for_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, device: str
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    write_lock(tmp_path, minutes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_up_processes(monkeypatch, device)
