"""The base of adapters as plain data, so that a checkpoint of adapters alone can be loaded again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from lit_probsft.errors import UserError
from lit_probsft.model.lora import LoRA
from lit_probsft.model.sources import ModelSource, PretrainedCausalLM, RandomCausalLM
from lit_probsft.storage.adapter_folder import adapters_at

_SOURCES = PretrainedCausalLM.__module__


def describe_base(source: ModelSource | None, dtype: torch.dtype, fingerprint: str) -> dict[str, Any] | None:
    """How to load a base again, as plain data; None where that takes more than data, such as code of the user's, and a
    checkpoint must hold it."""
    plain = isinstance(source, PretrainedCausalLM | RandomCausalLM) and type(source).__module__ == _SOURCES
    if not plain or getattr(source, "trust_remote_code", False):
        return None
    assert isinstance(source, PretrainedCausalLM | RandomCausalLM)
    return {
        "kind": type(source).__name__,
        "fields": asdict(source),
        "dtype": str(dtype).removeprefix("torch."),
        "fingerprint": fingerprint,
    }


def check_named(
    lora: LoRA, kind: str | None, argument: str, name: str | None = None, revision: str | None = None
) -> None:
    """Refuse adapters alone that could not say beside what they are to be loaded.

    Args:
        lora: as asked for.
        kind: class of the source of their base.
        argument: how they were asked for.
        name: the base's hub id or folder, if it has one.
        revision: of a hub id.
    """
    if lora.export == "adapter" and name and adapters_at(name, revision) is not None:
        raise UserError(
            argument,
            "expected merged beside a base that is a folder of adapters itself, got adapter; to train "
            "those on, name their base and model.lora.start",
        )
    if lora.export == "adapter" and kind == RandomCausalLM.__name__:
        raise UserError(
            argument, "expected merged beside a base of random weights, which no name stands for, got adapter"
        )
