"""From a trained model, or a checkpoint alone, to a Hugging Face folder with a model card."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lit_probsft.errors import UserError, first_line
from lit_probsft.model.adapters import is_adapter, merged, stored_transposed, within, write_adapter
from lit_probsft.model.base import check_named
from lit_probsft.model.lora import LoRA
from lit_probsft.model.quantization import dequantized, is_quantized, narrowest
from lit_probsft.model.sources import ModelSource, PretrainedCausalLM, RandomCausalLM
from lit_probsft.model.vocabulary import check_trained
from lit_probsft.parallel.sharding import plain_class
from lit_probsft.run.card import model_card
from lit_probsft.storage.adapter_folder import CONFIG as ADAPTER_CONFIG
from lit_probsft.storage.adapter_folder import is_adapter_folder
from lit_probsft.storage.atomic import atomic_write, report_write_errors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINT_KEY = "lit_probsft"
"""Where a checkpoint keeps what export needs beside the weights: plain data, so that it loads with weights_only."""

_WEIGHTS_PREFIX = "model."


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    card: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    lora: LoRA | None = None,
    base: ModelSource | None = None,
) -> None:
    """Write weights (safetensors), configuration, tokenizer, chat template and model card, in the dtype of the weights.

    Everything is written beside `out` and renamed into place, so that a folder of that name is always whole.

    Args:
        model: gives class and configuration, and the weights where none are given.
        tokenizer: saved beside it.
        out: the folder; one that is there is replaced.
        card: what the model card says, plain data.
        weights: by name, where the model holds only slices of them; see `parallel.sharding.whole_weights`.
        lora: its adapters, which are merged into the weights, quantized ones becoming plain, or written alone, as
            `lora.export` says.
        base: where the weights beside adapters come from, which adapters alone name.

    Raises:
        UserError: it could not be written; what was at `out` is untouched.
    """
    weights, card = model.state_dict() if weights is None else weights, card or {}
    if lora is not None and lora.export == "adapter":
        write = partial(_write_adapter, weights=weights, lora=lora, base=base, model=model)
        _write(out, write, _tokenizer_files(tokenizer), {**card, "adapter": True})
        return
    weights = dequantized(model, weights) if is_quantized(model) else weights
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"), _unpartitioned():
        shell = plain_class(model)(config)
    shell.generation_config = model.generation_config
    kept = _kept(shell, weights, lora)
    _write(out, lambda folder: shell.save_pretrained(folder, state_dict=kept), _tokenizer_files(tokenizer), card)


def _kept(shell: Any, weights: Mapping[str, Tensor], lora: LoRA | None) -> dict[str, Tensor]:
    """What is stored of `weights`. A tied weight is one tensor under two names, stored under the one it is tied to."""
    whole = dict(weights) if lora is None else merged(weights, lora.scaling, stored_transposed(shell))
    tied = set(getattr(shell, "all_tied_weights_keys", None) or {})
    kept = {name: value for name, value in whole.items() if name not in tied}
    if lora is not None and lora.modules_to_save:  # which were widened to be trained
        dtype, modules = narrowest(kept.values()), lora.whole_modules(shell)
        kept = {name: value.to(dtype) if within(name, modules) else value for name, value in kept.items()}
    shell.to(next(iter(kept.values())).dtype)  # which save_pretrained writes into the configuration
    return kept


def _write_adapter(folder: Path, *, weights: Mapping[str, Tensor], lora: LoRA, base: Any, model: Any) -> None:
    targets = sorted({name.partition(".lora_")[0] for name in weights if is_adapter(name)})
    whole = lora.whole_modules(model)
    config = lora.peft_config(model, targets)
    config.modules_to_save = whole or None
    config.base_model_name_or_path = getattr(base, "model_name_or_path", None) or model.name_or_path or None
    config.revision = getattr(base, "revision", None)
    write_adapter(folder, weights, config, whole)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _unpartitioned() -> Any:
    from transformers.modeling_utils import set_zero3_state

    return set_zero3_state()


def checkpoint_entry(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    card: Mapping[str, Any],
    lora: LoRA | None = None,
    base: Mapping[str, Any] | None = None,
    new_tokens: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What a checkpoint must hold beside the weights for `export_checkpoint` to work from it alone, or with the `base`
    that it names where it holds nothing but adapters (see `describe_base`); `new_tokens` are those that the base does
    not know."""
    return {
        "model_class": plain_class(model).__name__,
        "lora": None if lora is None else json.dumps(asdict(lora)),
        "base": None if base is None else json.dumps(base),
        "new_tokens": dict(new_tokens or {}),
        "config": model.config.to_json_string(use_diff=False),
        "generation_config": None if model.generation_config is None else model.generation_config.to_json_string(),
        "tokenizer": {} if tokenizer is None else _tokenizer_files(tokenizer),
        "card": json.dumps(card),
    }


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    overwrite: bool = False,
    form: Literal["merged", "adapter"] | None = None,
    base: str | None = None,
) -> None:
    """Write the Hugging Face folder of a checkpoint that `fit` left behind.

    Args:
        checkpoint: a file or a folder.
        out: the folder to write.
        overwrite: replace what is there.
        form: of a run with adapters; None is as its `lora.export` says.
        base: where the base of its adapters lies now, if not where it did.

    Raises:
        UserError: there is no such checkpoint, it is not one of ours or damaged, its base is another or not there, or
            `out` exists and may not be replaced: only an exported model or an empty folder is.
    """
    if not checkpoint.exists():
        raise UserError("CKPT", f"expected a checkpoint, there is none at {checkpoint}")
    _check_target(out, checkpoint, overwrite)
    content = _read(checkpoint)
    if CHECKPOINT_KEY not in content:
        raise UserError("CKPT", f"expected a checkpoint written by `lit_probsft fit`, {checkpoint} is none")

    import transformers

    entry = content[CHECKPOINT_KEY]
    lora = None if entry.get("lora") is None else LoRA(**{**json.loads(entry["lora"]), "start": None})
    if lora is None and (form == "adapter" or base is not None):
        raise UserError("CKPT", f"expected a checkpoint of a run with model.lora, {checkpoint} holds a whole model")
    lora = lora if lora is None or form is None else replace(lora, export=form)
    fields = json.loads(entry["config"])
    fields.pop("quantization_config", None)
    config = transformers.CONFIG_MAPPING[fields.pop("model_type")].from_dict(fields)
    weights: dict[str, Tensor] = {
        name.removeprefix(_WEIGHTS_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(_WEIGHTS_PREFIX)
    }
    model_class = getattr(transformers, entry["model_class"], None)
    if model_class is None:
        raise UserError(
            "CKPT",
            f"expected a model of transformers, {checkpoint} holds a {entry['model_class']}, whose code is not "
            "in it; take the model that `fit` exports at its end",
        )
    with torch.device("meta"):
        shell = model_class(config)
    if entry["generation_config"]:
        shell.generation_config = transformers.GenerationConfig.from_dict(json.loads(entry["generation_config"]))
    described = None if entry.get("base") is None else json.loads(entry["base"])
    card = json.loads(entry["card"])
    if lora is not None and lora.export == "adapter":
        check_trained(entry.get("new_tokens") or {}, lora, "--adapter")
        known = {} if described is None else described["fields"]
        for name, revision in ((known.get("model_name_or_path"), known.get("revision")), (base, None)):
            check_named(lora, None if described is None else described["kind"], "--adapter", name, revision)
        source = None if described is None else PretrainedCausalLM(**known)
        source = PretrainedCausalLM(base) if base is not None else source
        write = partial(_write_adapter, weights=weights, lora=lora, base=source, model=shell)
        _write(out, write, entry["tokenizer"], {**card, "adapter": True})
        return
    if described is not None:
        weights = {**_base_weights(described, shell, base), **weights}
    kept = _kept(shell, weights, lora)
    _write(out, lambda folder: shell.save_pretrained(folder, state_dict=kept), entry["tokenizer"], card)


def _base_weights(described: Mapping[str, Any], shell: Any, place: str | None) -> dict[str, Tensor]:
    """Of the base that a checkpoint names, on this machine's memory.

    Raises:
        UserError: it is not there, or not the one that was trained with.
    """
    from lit_probsft.model.fingerprint import fingerprint

    fields = dict(described["fields"])
    source: PretrainedCausalLM | RandomCausalLM
    if described["kind"] == "RandomCausalLM":
        if place is not None:
            raise UserError("--base", f"expected none, the run began with random weights; got {place}")
        # What the tokenizer gave it stands in the model's configuration.
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
            "--base", f"expected the base of the checkpoint's adapters, which is not to be had: {error}"
        ) from error
    if (found := fingerprint(model, torch.device("cpu"))) != described["fingerprint"]:
        raise UserError(
            "--base",
            f"expected the base that the adapters were trained with (weights {described['fingerprint']}), "
            f"{source.name} is another ({found})",
        )
    weights = model.state_dict()
    return dequantized(model, weights) if is_quantized(model) else dict(weights)


def _read(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint of any kind with all weights, under `state_dict`; nothing in it is run."""
    from lit_probsft.storage.checkpoint_files import damage, format_of
    from lit_probsft.storage.checkpoint_safety import check_harmless

    wrong = damage(checkpoint)
    if wrong is not None:
        raise UserError("CKPT", f"expected a whole checkpoint, {checkpoint} is damaged: {wrong}")
    try:
        if not checkpoint.is_dir():
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            return content if isinstance(content, dict) else {}
        check_harmless(checkpoint)
        return _read_deepspeed(checkpoint) if format_of(checkpoint) == "deepspeed" else _read_slices(checkpoint)
    except UserError as error:
        raise UserError(error.argument.replace("--resume", "CKPT", 1), error.problem) from error
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint at all
        raise UserError(
            "CKPT", f"expected a checkpoint of `fit`, {checkpoint} cannot be read: {first_line(error)}"
        ) from error


def _read_slices(checkpoint: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    described = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix("state_dict."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in described.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }
    load({"state_dict": weights}, checkpoint_id=checkpoint, no_dist=True)
    return {**torch.load(checkpoint / "meta.pt", map_location="cpu", weights_only=True), "state_dict": weights}


def _read_deepspeed(checkpoint: Path) -> dict[str, Any]:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint, get_model_state_files
    except ImportError as error:
        raise UserError(
            "CKPT",
            f'{checkpoint} was written by DeepSpeed, which is not installed (pip install "lit_probsft[deepspeed]")',
        ) from error
    first = get_model_state_files(str(checkpoint / "checkpoint"))[0]
    # Its classes are known to be harmless by now.
    content = torch.load(first, map_location="cpu", weights_only=False, mmap=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it merges
        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag="checkpoint")
    return {CHECKPOINT_KEY: content.get(CHECKPOINT_KEY), "state_dict": weights} if CHECKPOINT_KEY in content else {}


def _check_target(out: Path, checkpoint: Path, overwrite: bool) -> None:
    file = next((path for path in (out, *out.absolute().parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise UserError("OUT", f"expected a folder to write, got {str(out)!r}: {file} is a file")
    if out.is_symlink():
        raise UserError("OUT", f"expected a folder to write, {out} is a link")
    if not out.exists():
        return
    if not overwrite:
        raise UserError("OUT", f"expected a folder that does not exist yet, {out} does; --overwrite replaces it")
    whole = out.resolve()
    for what, path in (("the checkpoint", checkpoint.resolve()), ("the working directory", Path.cwd())):
        if path.is_relative_to(whole):
            raise UserError("OUT", f"expected a folder that can be replaced, {str(out)!r} holds {what}")
    if any(out.iterdir()) and not _looks_exported(out):
        raise UserError(
            "OUT",
            f"expected a folder that can be replaced (an exported model, or empty), {str(out)!r} holds other files",
        )


def loader_of(folder: Path) -> str:
    """What loads an exported folder."""
    if is_adapter_folder(folder):
        return "peft.AutoPeftModelForCausalLM.from_pretrained"
    return "transformers.AutoModelForCausalLM.from_pretrained"


def _looks_exported(folder: Path) -> bool:
    card = folder / "README.md"
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)) or not card.is_file():
        return False
    front = card.read_text(encoding="utf-8", errors="replace").split("---")
    return len(front) > 2 and "lit_probsft" in front[1]


def _write(out: Path, save_weights: Any, tokenizer_files: Mapping[str, str], card: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError

    with report_write_errors("export", out), atomic_write(out.absolute()) as partial:
        partial.mkdir()
        try:
            save_weights(partial)
        except SafetensorError as error:  # hides the system's error
            raise OSError(0, first_line(error)) from error
        for name, text in tokenizer_files.items():
            (partial / name).write_bytes(base64.b64decode(text))
        (partial / "README.md").write_text(model_card(card), encoding="utf-8")


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's files by name, base64: the only form that survives every file format and weights_only loading."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(Path(folder).iterdir())
        return {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}
