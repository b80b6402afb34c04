"""Exports a trained model as a Hugging Face folder with a model card."""

from __future__ import annotations

import base64
import copy
import json
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_probsft.errors import UserError, first_line
from lit_probsft.model import ModelSource
from lit_probsft.model.adapters import belongs_to, is_adapter, merge_adapters, stored_transposed, write_adapter
from lit_probsft.model.lora import LoRA
from lit_probsft.model.quantization import dequantized, is_quantized, narrowest_dtype
from lit_probsft.parallel.sharding import plain_class
from lit_probsft.run.model_card import model_card
from lit_probsft.storage.adapter_folder import CONFIG, is_adapter_folder
from lit_probsft.storage.atomic import atomic_write, report_write_errors
from lit_probsft.storage.gguf import gguf_at

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    """Write weights (safetensors), configuration, tokenizer, chat template and model card; see `in_export_dtype`.

    The folder is written atomically: `out` is always complete.

    Args:
        model: gives the class and the configuration, and the weights unless `weights` is given.
        tokenizer: saved in the same folder.
        out: the folder; an existing one is replaced.
        card: the facts for the model card, see `card_facts`.
        weights: whole weights by name, for a sharded model; see `parallel.sharding.whole_weights`.
        lora: the model's adapters. They are merged into the weights (quantized weights become plain), or written
            alone, according to `lora.export`.
        base: the source of the base weights; an adapter folder names it.

    Raises:
        UserError: the folder could not be written; an earlier one at `out` is unchanged.
    """
    weights, card = model.state_dict() if weights is None else weights, card or {}
    files = tokenizer_files(tokenizer)
    if lora is not None and lora.export == "adapter":
        write_adapters(out, model, weights, files, card, lora, base)
        return
    weights = dequantized(model, weights) if is_quantized(model) else weights
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"), _without_zero3():
        shell = plain_class(model)(config)
    shell.generation_config = model.generation_config
    write_model(out, shell, weights, files, card, lora)


def write_model(
    out: Path,
    shell: Any,
    weights: Mapping[str, Tensor],
    files: Mapping[str, str],
    card: Mapping[str, Any],
    lora: LoRA | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a whole model, with its adapters merged.

    Args:
        out: the folder.
        shell: the model on the meta device: its class and configuration.
        weights: by name; those of adapters have names of their own.
        files: of the tokenizer, see `tokenizer_files`.
        card: the facts for the model card.
        lora: the adapters among the weights.
        dtype: of the written weights; see `in_export_dtype`.
    """
    whole = dict(weights) if lora is None else merge_adapters(weights, lora.scaling, stored_transposed(shell))
    tied = set(getattr(shell, "all_tied_weights_keys", None) or {})  # second names of other weights
    kept = {name: value for name, value in whole.items() if name not in tied}
    if lora is not None and lora.modules_to_save:  # they were widened for training
        narrow, modules = narrowest_dtype(kept.values()), lora.saved_modules(shell)
        kept = {name: value.to(narrow) if belongs_to(name, modules) else value for name, value in kept.items()}
    kept = in_export_dtype(kept, dtype, shell.config)
    shell.to(next(iter(kept.values())).dtype)  # save_pretrained writes the dtype into the configuration
    _write_folder(out, lambda folder: shell.save_pretrained(folder, state_dict=kept), files, card)


def write_adapters(
    out: Path,
    model: Any,
    weights: Mapping[str, Tensor],
    files: Mapping[str, str],
    card: Mapping[str, Any],
    lora: LoRA,
    base: Any,
    dtype: torch.dtype | None = None,
) -> None:
    """Write adapters alone, in peft's format.

    Args:
        out: the folder.
        model: the adapted model, possibly on the meta device.
        weights: by name, including those of the adapters.
        files: of the tokenizer, see `tokenizer_files`.
        card: the facts for the model card.
        lora: the adapters.
        base: the source of the base weights; None where the model itself names it.
        dtype: of the written weights; see `in_export_dtype`.
    """
    whole = lora.saved_modules(model)
    kept = {name: value for name, value in weights.items() if is_adapter(name) or belongs_to(name, whole)}
    kept = in_export_dtype(kept, dtype, model.config)

    def save(folder: Path) -> None:
        targets = sorted({name.partition(".lora_")[0] for name in weights if is_adapter(name)})
        config = lora.peft_config(model, targets)
        config.modules_to_save = whole or None
        config.base_model_name_or_path = getattr(base, "model_name_or_path", None) or model.name_or_path or None
        config.revision = getattr(base, "revision", None)
        write_adapter(folder, kept, config)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)

    _write_folder(out, save, files, {**card, "adapter": True})


def in_export_dtype(weights: Mapping[str, Tensor], asked: torch.dtype | None, config: Any) -> dict[str, Tensor]:
    """The weights in the dtype in which they are exported.

    This is the dtype that is asked for, otherwise that of the base model, which its configuration keeps, unless the
    weights are narrower or do not fit. Rounding a trained model to fewer bits is what its base has been through too.

    Args:
        weights: by name.
        asked: by the user.
        config: of the model.

    Raises:
        UserError: weights are too large for the dtype that is asked for.
    """
    from lightning.pytorch.utilities import rank_zero_warn

    stored = getattr(torch, str(config.dtype).removeprefix("torch."), None)
    widest = max((value.element_size() for value in weights.values() if value.is_floating_point()), default=0)
    dtype: torch.dtype | None = asked or stored
    if dtype is None or (asked is None and dtype.itemsize > widest):
        return dict(weights)
    result = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    for name, value in result.items():
        if value.is_floating_point() and value.isinf().any() and not weights[name].isinf().any():
            problem = f"{name} has values up to {float(weights[name].abs().max()):.3g}, too large for {dtype}"
            if asked is not None:
                raise UserError("--dtype", f"{problem}; bfloat16 has the range of float32")
            rank_zero_warn(f"export: {problem}, the dtype of the base; the weights stay in {weights[name].dtype}")
            return dict(weights)
    return result


def _write_folder(
    out: Path, save_weights: Callable[[Path], Any], files: Mapping[str, str], card: Mapping[str, Any]
) -> None:
    from safetensors import SafetensorError

    with report_write_errors("export", out), atomic_write(out.absolute()) as partial:
        partial.mkdir()
        try:
            save_weights(partial)
        except SafetensorError as error:  # hides the OSError
            raise OSError(0, first_line(error)) from error
        for name, text in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(base64.b64decode(text))
        (readme := partial / "README.md").write_text(model_card(card), encoding="utf-8")
        for file in partial.glob("*.safetensors"):  # safetensors lets nobody else read them, whatever the umask says
            file.chmod(stat.S_IMODE(readme.stat().st_mode))


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's files by path, in base64: text survives every checkpoint format and `weights_only` loading."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())  # named templates have a folder
        return {str(file.relative_to(folder)): base64.b64encode(file.read_bytes()).decode() for file in files}


def loader_of(folder: Path) -> str:
    """The class method that loads an exported folder."""
    if is_adapter_folder(folder):
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
        if base and gguf_at(base) is not None:  # peft would look for a folder
            return "lit_probsft.model.PretrainedCausalLM"
        return "peft.AutoPeftModelForCausalLM.from_pretrained"
    return "transformers.AutoModelForCausalLM.from_pretrained"


def _without_zero3() -> Any:
    """Keeps transformers from partitioning a new model under ZeRO-3."""
    from transformers.modeling_utils import set_zero3_state

    return set_zero3_state()
