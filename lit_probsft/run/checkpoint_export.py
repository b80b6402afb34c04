"""Exports the model in a checkpoint as a Hugging Face folder, without the run that wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lit_probsft.errors import UserError
from lit_probsft.model import ModelSource, PretrainedCausalLM, RandomCausalLM
from lit_probsft.model.adapter_base import check_adapter_export
from lit_probsft.model.lora import LoRA
from lit_probsft.model.quantization import dequantized, is_quantized
from lit_probsft.model.vocabulary import check_trained
from lit_probsft.parallel.sharding import plain_class
from lit_probsft.run.export import tokenizer_files, write_adapters, write_model
from lit_probsft.storage.adapter_folder import CONFIG as ADAPTER_CONFIG
from lit_probsft.storage.checkpoint_reading import read_content

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINT_KEY = "lit_probsft"
"""The key of `checkpoint_entry` in a checkpoint."""

_WEIGHTS_PREFIX = "model."


def checkpoint_entry(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    card: Mapping[str, Any],
    lora: LoRA | None = None,
    base: Mapping[str, Any] | None = None,
    new_tokens: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds for `export_checkpoint` in addition to the weights.

    Args:
        model: of the run.
        tokenizer: of the run.
        card: the facts for the model card.
        lora: the model's adapters.
        base: describes the base model, where the checkpoint holds only adapters; see `describe_base`.
        new_tokens: tokens that the base model lacks.

    Returns:
        Plain data, which `weights_only` loading accepts.
    """
    return {
        "model_class": plain_class(model).__name__,
        "lora": None if lora is None else json.dumps(asdict(lora)),
        "base": None if base is None else json.dumps(base),
        "new_tokens": dict(new_tokens or {}),
        "config": model.config.to_json_string(use_diff=False),
        "generation_config": None if model.generation_config is None else model.generation_config.to_json_string(),
        "tokenizer": {} if tokenizer is None else tokenizer_files(tokenizer),
        "card": json.dumps(card),
    }


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    overwrite: bool = False,
    form: Literal["merged", "adapter"] | None = None,
    base: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the Hugging Face folder of a checkpoint that `fit` wrote.

    Args:
        checkpoint: a file or a folder.
        out: the folder to write.
        overwrite: replace an existing folder. Only an exported model or an empty folder is replaced.
        form: what to write for a run with adapters; None follows its `lora.export`.
        base: where the base model of the adapters is now, if it has moved.
        dtype: of the written weights; None is that of the base model.

    Raises:
        UserError: the checkpoint is missing, damaged or not written by `fit`; its base model is missing or a different
            one; or `out` exists and must not be replaced.
    """
    if not checkpoint.exists():
        raise UserError("CKPT", f"no such checkpoint: {checkpoint}")
    _check_target(out, checkpoint, overwrite)
    content = read_content(checkpoint, "CKPT")
    if CHECKPOINT_KEY not in content:
        raise UserError("CKPT", f"{checkpoint} is not a checkpoint written by `lit_probsft fit`")
    entry = content[CHECKPOINT_KEY]
    lora = None if entry.get("lora") is None else LoRA(**{**json.loads(entry["lora"]), "start": None})
    if lora is None and (form == "adapter" or base is not None):
        raise UserError("CKPT", f"expected a checkpoint of a run with model.lora, {checkpoint} holds a whole model")
    lora = lora if lora is None or form is None else replace(lora, export=form)
    shell = _shell(entry, checkpoint)
    weights: dict[str, Tensor] = {
        name.removeprefix(_WEIGHTS_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(_WEIGHTS_PREFIX)
    }
    described = None if entry.get("base") is None else json.loads(entry["base"])
    card = json.loads(entry["card"])
    if lora is not None and lora.export == "adapter":
        check_trained(entry.get("new_tokens") or {}, lora, "--adapter")
        known = {} if described is None else described["fields"]
        for name, revision in ((known.get("model_name_or_path"), known.get("revision")), (base, None)):
            check_adapter_export(lora, None if described is None else described["kind"], "--adapter", name, revision)
        source = None if described is None else PretrainedCausalLM(**known)
        source = PretrainedCausalLM(base) if base is not None else source
        write_adapters(out, shell, weights, entry["tokenizer"], card, lora, source, dtype)
        return
    if described is not None:
        weights = {**_base_weights(described, shell, base), **weights}
    write_model(out, shell, weights, entry["tokenizer"], card, lora, dtype)


def _shell(entry: Mapping[str, Any], checkpoint: Path) -> Any:
    """The model of a checkpoint on the meta device."""
    import transformers

    fields = json.loads(entry["config"])
    fields.pop("quantization_config", None)
    config = transformers.CONFIG_MAPPING[fields.pop("model_type")].from_dict(fields)
    model_class = getattr(transformers, entry["model_class"], None)
    if model_class is None:
        raise UserError(
            "CKPT",
            f"expected a model class of transformers, {checkpoint} has {entry['model_class']}, whose code it does not "
            "contain; use the model that `fit` exports at the end of the run",
        )
    with torch.device("meta"):
        shell = model_class(config)
    if entry["generation_config"]:
        shell.generation_config = transformers.GenerationConfig.from_dict(json.loads(entry["generation_config"]))
    return shell


def _base_weights(described: Mapping[str, Any], shell: Any, place: str | None) -> dict[str, Tensor]:
    """The weights of the base model that a checkpoint describes, on the CPU.

    Raises:
        UserError: the base model could not be loaded, or has other weights than the one that was trained.
    """
    from lit_probsft.model.fingerprint import fingerprint

    fields = dict(described["fields"])
    source: PretrainedCausalLM | RandomCausalLM
    if described["kind"] == "RandomCausalLM":
        if place is not None:
            raise UserError("--base", f"expected none, the run began with random weights; got {place}")
        # The model's configuration holds the values that came from the tokenizer.
        known = shell.config.to_dict()
        given = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
        fields["config"] = {**{name: known[name] for name in given if name in known}, **fields["config"]}
        source = RandomCausalLM(**fields)
    else:
        source = PretrainedCausalLM(**{**fields, "model_name_or_path": place or fields["model_name_or_path"]})
    try:
        bare: ModelSource = replace(source, gradient_checkpointing=False, compile=False)
        model = bare.load(None, getattr(torch, described["dtype"]))
    except UserError as error:
        raise UserError(
            "--base", f"expected the base of the checkpoint's adapters, which could not be loaded: {error}"
        ) from error
    if (found := fingerprint(model, torch.device("cpu"))) != described["fingerprint"]:
        raise UserError(
            "--base",
            f"expected the base that the adapters were trained with (weights {described['fingerprint']}), "
            f"{source.name} has other weights ({found})",
        )
    weights = model.state_dict()
    return dequantized(model, weights) if is_quantized(model) else dict(weights)


def _check_target(out: Path, checkpoint: Path, overwrite: bool) -> None:
    file = next((path for path in (out, *out.absolute().parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise UserError("OUT", f"expected a folder to write, got {str(out)!r}: {file} is a file")
    if out.is_symlink():
        raise UserError("OUT", f"expected a folder to write, {out} is a link")
    if not out.exists():
        return
    if not overwrite:
        raise UserError("OUT", f"expected a new folder, {out} exists; --overwrite replaces it")
    resolved = out.resolve()
    for content, path in (("the checkpoint", checkpoint.resolve()), ("the working directory", Path.cwd())):
        if path.is_relative_to(resolved):
            raise UserError("OUT", f"expected a folder that can be replaced, {str(out)!r} contains {content}")
    if any(out.iterdir()) and not _looks_exported(out):
        raise UserError(
            "OUT",
            f"expected an exported model or an empty folder to replace, {str(out)!r} contains other files",
        )


def _looks_exported(folder: Path) -> bool:
    card = folder / "README.md"
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)) or not card.is_file():
        return False
    front = card.read_text(encoding="utf-8", errors="replace").split("---")
    return len(front) > 2 and "lit_probsft" in front[1]
