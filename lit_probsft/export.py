"""From a trained model, or a checkpoint alone, to a Hugging Face folder with a model card."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINT_KEY = "lit_probsft"
"""Where a checkpoint keeps what export needs beside the weights: plain data, so that it loads with weights_only."""

_WEIGHTS_PREFIX = "model."


def export_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, *, card: Mapping[str, Any] | None = None
) -> None:
    """Write weights (safetensors), configuration, tokenizer, chat template and model card, in the dtype of the weights.

    Everything is written beside `out` and renamed into place, so that a folder of that name is always whole.
    """
    _write(out, lambda folder: model.save_pretrained(folder), _tokenizer_files(tokenizer), card or {})


def checkpoint_entry(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, card: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint must hold beside the weights for `export_checkpoint` to work from it alone."""
    return {
        "model_class": type(model).__name__,
        "config": model.config.to_json_string(use_diff=False),
        "generation_config": None if model.generation_config is None else model.generation_config.to_json_string(),
        "tokenizer": {} if tokenizer is None else _tokenizer_files(tokenizer),
        "card": json.dumps(card),
    }


def export_checkpoint(checkpoint: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write the Hugging Face folder of a checkpoint that `fit` left behind.

    Raises:
        UserError: there is no such checkpoint, it is not one of ours or damaged, or `out` exists and may not be
            replaced: only an exported model or an empty folder is.
    """
    if not checkpoint.is_file():
        raise UserError(f"CKPT: expected a checkpoint file, there is none at {checkpoint}")
    _check_target(out, checkpoint, overwrite)

    import torch
    import transformers

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is cut short or no checkpoint at all
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"CKPT: expected a whole checkpoint, {checkpoint} cannot be read: {reason}") from error
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        raise UserError(f"CKPT: expected a checkpoint written by `lit_probsft fit`, {checkpoint} is none")
    entry = content[CHECKPOINT_KEY]
    fields = json.loads(entry["config"])
    config = transformers.CONFIG_MAPPING[fields.pop("model_type")].from_dict(fields)
    weights: dict[str, Tensor] = {
        name.removeprefix(_WEIGHTS_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(_WEIGHTS_PREFIX)
    }
    with torch.device("meta"):
        shell = getattr(transformers, entry["model_class"])(config)
    if entry["generation_config"]:
        shell.generation_config = transformers.GenerationConfig.from_dict(json.loads(entry["generation_config"]))
    # A tied weight is one tensor under two names; safetensors stores it once, under the name it is tied to.
    tied = set(getattr(shell, "all_tied_weights_keys", None) or {})
    kept = {name: value for name, value in weights.items() if name not in tied}
    shell.config.dtype = next(iter(kept.values())).dtype
    _write(
        out,
        lambda folder: shell.save_pretrained(folder, state_dict=kept),
        entry["tokenizer"],
        json.loads(entry["card"]),
    )


def _check_target(out: Path, checkpoint: Path, overwrite: bool) -> None:
    file = next((path for path in (out, *out.absolute().parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise UserError(f"OUT: expected a folder to write, got {str(out)!r}: {file} is a file")
    if out.is_symlink():
        raise UserError(f"OUT: expected a folder to write, {out} is a link")
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"OUT: expected a folder that does not exist yet, {out} does; --overwrite replaces it")
    whole = out.resolve()
    for what, path in (("the checkpoint", checkpoint.resolve()), ("the working directory", Path.cwd())):
        if path.is_relative_to(whole):
            raise UserError(f"OUT: expected a folder that can be replaced, {str(out)!r} holds {what}")
    if any(out.iterdir()) and not _looks_exported(out):
        raise UserError(
            f"OUT: expected a folder that can be replaced (an exported model, or empty), {str(out)!r} holds other files"
        )


def _looks_exported(folder: Path) -> bool:
    card = folder / "README.md"
    if not (folder / "config.json").is_file() or not card.is_file():
        return False
    front = card.read_text(encoding="utf-8", errors="replace").split("---")
    return len(front) > 2 and "lit_probsft" in front[1]


def _write(out: Path, save_weights: Any, tokenizer_files: Mapping[str, str], card: Mapping[str, Any]) -> None:
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        save_weights(partial)
        for name, text in tokenizer_files.items():
            (partial / name).write_bytes(base64.b64decode(text))
        (partial / "README.md").write_text(model_card(card), encoding="utf-8")
        partial.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's files by name, base64: the only form that survives every file format and weights_only loading."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(Path(folder).iterdir())
        return {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}


def model_card(card: Mapping[str, Any]) -> str:
    """README.md of an exported model: what it was trained with, and how well it did, from plain data."""
    import yaml

    base = card.get("base_model")
    front: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["lit_probsft", "sft"],
        "pipeline_tag": "text-generation",
    }
    # Only a hub id may stand here; a folder would make the hub refuse the card.
    if base and base.count("/") == 1 and not Path(base).exists() and " " not in base:
        front["base_model"] = base
    objective = card.get("objective") or {}
    name = str(objective.get("class_path", "unknown objective")).rsplit(".", 1)[-1]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", ""]
    lines += [f"# {card.get('name', 'Fine-tuned model')}", ""]
    lines += [f"Fine-tuned from {base or 'an unknown model'} with lit_probsft; objective **{name}**.", ""]
    for title, key in (("Objective", "objective"), ("Recipe", "recipe"), ("Data", "data")):
        if card.get(key):
            lines += [f"## {title}", "", "```yaml", yaml.safe_dump(card[key], sort_keys=False).strip(), "```", ""]
    metrics = {k: v for k, v in (card.get("metrics") or {}).items() if isinstance(v, int | float)}
    if metrics:
        lines += [
            "## Metrics",
            "",
            "NLL and its relatives are in nats per supervised token.",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [f"| {k} | {v:.6g} |" for k, v in sorted(metrics.items())] + [""]
    return "\n".join(lines)
