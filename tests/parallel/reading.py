"""Reads checkpoints of any format without the code under test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_probsft.run.checkpoint_export import CHECKPOINT_KEY
from lit_probsft.run.timer import CLOCK
from tests.crash.scene import state

DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")


def deepspeed_files(checkpoint: Path) -> dict[str, Any]:
    """The files of all ranks by name, loaded without weights_only because the tests wrote them."""
    files = sorted((checkpoint / "checkpoint").glob("*.pt"))
    return {file.name: torch.load(file, map_location="cpu", weights_only=False) for file in files}


def content(checkpoint: Path) -> Any:
    """The content as plain data and tensors, without values that depend on time or on the run's name."""
    if not (checkpoint / "checkpoint").is_dir():
        return state(checkpoint)
    files = deepspeed_files(checkpoint)
    for file in files.values():
        file.get(CHECKPOINT_KEY, {}).pop("card", None)
        file.pop(CLOCK, None)
        for name in ("config", "rows"):
            file.get("callbacks", {}).get("RunRecord", {}).pop(name, None)
    return _plain(files)


def _plain(value: Any) -> Any:
    """Objects as dictionaries, so that values can be compared."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, torch.Tensor) or not hasattr(value, "__dict__"):
        return value
    return {"": type(value).__name__, **_plain(vars(value))}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The model's weights by name; adapters are not merged."""
    if not checkpoint.is_dir():
        module = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    elif not (checkpoint / "checkpoint").is_dir():
        module = state(checkpoint)["state_dict"]
    else:
        module = _deepspeed_weights(deepspeed_files(checkpoint))
    return {name.removeprefix("model."): value for name, value in module.items() if name.startswith("model.")}


def _deepspeed_weights(files: dict[str, Any]) -> dict[str, torch.Tensor]:
    models = [file for name, file in files.items() if name.endswith("model_states.pt")]
    first = models[0]
    if first["ds_config"]["zero_optimization"]["stage"] < 3:
        return dict(first["module"])
    # Each rank holds an equal part of each parameter; the last one is padded.
    parts = [file["optimizer_state_dict"] for name, file in files.items() if name.endswith("optim_states.pt")]
    flat = [torch.cat([*map(torch.flatten, part["fp32_flat_groups"])]) for part in parts]
    found, place = {}, 0
    for shapes in first["param_shapes"]:
        for name, shape in shapes.items():
            size = -(-shape.numel() // len(flat))
            whole = torch.cat([values[place : place + size] for values in flat])
            found[name] = whole[: shape.numel()].view(shape)
            place += size
    for name, shape in (first["frozen_param_shapes"] or {}).items():
        whole = torch.cat([model["frozen_param_fragments"][name].flatten() for model in models])
        found[name] = whole[: shape.numel()].view(shape)
    return found


def exported_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
