"""The model that is evaluated, and the backend that answers for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_probsft.errors import UserError
from lit_probsft.evaluation.generation.local import LocalBackend
from lit_probsft.evaluation.generation.pool import Pool
from lit_probsft.evaluation.generation.requests import Backend
from lit_probsft.evaluation.generation.server import ServerBackend
from lit_probsft.evaluation.models import TokenizerOptions, load_model, load_tokenizer
from lit_probsft.model.fingerprint import fingerprint
from lit_probsft.model.loading import read_config_of


@dataclass
class Subject:
    """The model that is evaluated.

    Attributes:
        backend: answers for it.
        tokenizer: renders the prompts; None if the server does.
        context_length: tokens of a prompt and its answer together; None if it is not known.
        settings: what its answers depend on, by name.
        model: in this process; None if it is elsewhere.
    """

    backend: Backend
    tokenizer: Any
    context_length: int | None
    settings: dict[str, Any]
    model: Any = None


def local_subject(
    place: str,
    devices: Sequence[torch.device],
    dtype: str,
    options: TokenizerOptions,
    *,
    spread: bool = False,
    **answering: Any,
) -> Subject:
    """A model in this process, or a copy of it in one process per device.

    Args:
        place: hub id, folder or GGUF file.
        devices: one or several.
        dtype: of the weights; `auto` is bfloat16 on a GPU, else float32.
        options: of `load_tokenizer`.
        spread: distribute one copy over all GPUs and the CPU.
        answering: options of `LocalBackend`.

    Raises:
        UserError: the model cannot be loaded.
    """
    if dtype == "auto":
        dtype = "bfloat16" if devices[0].type == "cuda" else "float32"
    alone = len(devices) == 1
    model, tokenizer = load_model(place, devices[0] if alone else "cpu", dtype, spread=spread, **options)
    kept = "model" if answering.get("keep_generation_config") else None
    on_disk = any(weight.is_meta for weight in model.parameters())  # or wherever a device map has put them
    weights = str(Path(place).absolute()) if on_disk else fingerprint(model, torch.device("cpu"))
    settings = {"weights": weights, "dtype": dtype, "generation": kept, "server": None}
    limit = _positions(model.config)
    if alone:
        return Subject(LocalBackend(model, tokenizer, **answering), tokenizer, limit, settings, model)
    del model
    load = partial(_load_backend, place, dtype, options, answering)
    return Subject(Pool(load, [str(device) for device in devices]), tokenizer, limit, settings)


def server_subject(url: str, place: str | None, options: TokenizerOptions, **asking: Any) -> Subject:
    """A model on a server that speaks the OpenAI protocol.

    Args:
        url: of the server.
        place: hub id or folder with the tokenizer that renders the prompts; None leaves that to the server.
        options: of `load_tokenizer`.
        asking: options of `ServerBackend`.

    Raises:
        UserError: the server or the tokenizer cannot be used.
    """
    tokenizer, limit = None, None
    if place is not None:
        tokenizer = load_tokenizer(place, **options)
        trusted = options.get("trust_remote_code", False)
        limit = _positions(read_config_of(place, revision=options.get("revision") or "main", trust_remote_code=trusted))
    backend = ServerBackend(url, tokenizer=tokenizer, template_options=options.get("template_options"), **asking)
    known = backend.describe()
    settings = dict.fromkeys(("weights", "dtype", "generation"))
    return Subject(backend, tokenizer, limit, {**settings, "server": f"{known['model']} at {known['url']}"})


def devices_of(device: torch.device, count: int) -> list[torch.device]:
    """The first devices of a kind.

    Raises:
        UserError: there are not so many.
    """
    if count < 1:
        raise UserError("--devices", f"expected at least 1, got {count}")
    on_cpu = device.type == "cpu"
    if on_cpu and count > max(2, os.cpu_count() or 1):
        raise UserError("--devices", f"expected at most one for each CPU core, got {count}")
    if count == 1 or on_cpu:
        return [device] * count
    if count > (found := torch.accelerator.device_count()):
        raise UserError("--devices", f"torch finds {found} devices of the kind {device.type}, got {count}")
    return [torch.device(device.type, index) for index in range(count)]


def _positions(config: Any) -> int | None:
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def _load_backend(place: str, dtype: str, options: TokenizerOptions, answering: dict[str, Any], device: str) -> Backend:
    return LocalBackend(*load_model(place, device, dtype, **options), **answering)
