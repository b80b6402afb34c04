"""The base of adapters as plain data, so that adapters without their base can be loaded again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from lit_probsft.errors import UserError
from lit_probsft.model.lora import LoRA
from lit_probsft.model.pretrained import PretrainedCausalLM
from lit_probsft.model.random_weights import RandomCausalLM
from lit_probsft.model.source import ModelSource
from lit_probsft.storage.adapter_folder import adapters_at


def describe_base(source: ModelSource | None, dtype: torch.dtype, fingerprint: str) -> dict[str, Any] | None:
    """How to load a base again, as plain data.

    Returns:
        None if plain data is not enough, because loading the base runs code of the user's; a checkpoint then has to
        contain the base.
    """
    if type(source) not in (PretrainedCausalLM, RandomCausalLM) or getattr(source, "trust_remote_code", False):
        return None
    assert isinstance(source, PretrainedCausalLM | RandomCausalLM)
    return {
        "kind": type(source).__name__,
        "fields": asdict(source),
        "dtype": str(dtype).removeprefix("torch."),
        "fingerprint": fingerprint,
    }


def check_adapter_export(
    lora: LoRA, kind: str | None, argument: str, name: str | None = None, revision: str | None = None
) -> None:
    """Check that adapters that are exported without their base can name it.

    Args:
        lora: the options.
        kind: class name of the base's source.
        argument: the option or flag that asked for the export.
        name: the base's hub id or folder, if it has one.
        revision: of a hub id.

    Raises:
        UserError: the base is a folder of adapters itself, or has random weights.
    """
    if lora.export != "adapter":
        return
    if name and adapters_at(name, revision) is not None:
        raise UserError(
            argument,
            "expected merged, because the base is a folder of adapters itself, got adapter; to continue training those "
            "adapters, name their base as the model and their folder as model.lora.start",
        )
    if kind == RandomCausalLM.__name__:
        raise UserError(
            argument, "expected merged, because the base has random weights and no name to load it by, got adapter"
        )
