"""What adapters make of the weights they stand beside: computed, switched off, merged; and peft's folder of adapters
alone, written and read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_probsft.disk import reason
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "default"
"""The name that peft knows the adapters by."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a folder of adapters."""

_PREFIX = "base_model.model."
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")


def adapted_weight(weight: Tensor, change: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """(V, H) -> W + change, in the wider dtype; with `magnitude` (V,) each row has that length (DoRA, Liu et al., arXiv
    2402.09353), the length it is divided by being a constant as in section 4.3 there."""
    whole = weight + change
    if magnitude is None:
        return whole
    lengths: Tensor = torch.linalg.vector_norm(whole.detach(), dim=1)
    return (magnitude / lengths).unsqueeze(1) * whole


class Magnitude(nn.Module):
    """Lengths of the rows of a matrix, as a module: what shards parameters gathers them for a module that is called."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, factor: Tensor) -> Tensor:
        """(V,), times a factor."""
        return self.weight * factor


def head_weight(head: Any) -> Tensor:
    """(V, H), with what its own adapters add. They are called, and not read: whatever shards them gathers them then."""
    if "lora_A" not in head._modules or head._disable_adapters:
        weight: Tensor = head.weight
        return weight
    a, b = head.lora_A[ADAPTER], head.lora_B[ADAPTER]
    device = head.weight.device
    with torch.autocast(device.type, enabled=False):
        change = head.head_scaling * b(a(torch.eye(head.in_features, dtype=a.weight.dtype, device=device))).T
        lengths = getattr(head, "lora_magnitude_vector", None)
        return adapted_weight(head.weight, change, None if lengths is None else lengths[ADAPTER](change.new_ones(())))


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """While it lasts `model` computes what it did without adapters.

    peft's own switch would also change which parameters take a gradient, which sharding strategies have taken note of.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer) or hasattr(m, "head_scaling")]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer._disable_adapters = state


def is_adapter(name: str) -> bool:
    """Is it a parameter of an adapter?"""
    return any(f".{part}.{ADAPTER}" in name for part in _PARTS)


def merged(weights: Mapping[str, Tensor], scaling: float, transposed: Collection[str] = ()) -> dict[str, Tensor]:
    """The state dict of the model without adapters: each adapted W becomes W + scaling * B A, its rows of the learnt
    length where adapters have one; computed in fp32 at least and rounded once.

    Args:
        weights: by name, as peft names them (`X.base_layer.weight`, `X.lora_A.default.weight` ...); a state dict
            without adapters comes back as it is. A base weight may also have the plain name `X.weight`.
        scaling: alpha / r.
        transposed: names of the modules that keep W as (in, out); see `stored_transposed`.
    """
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        if is_adapter(name):
            continue
        name = name.replace(".base_layer.", ".")
        layer, _, field = name.rpartition(".")
        a, b, magnitude = (weights.get(f"{layer}.{part}.{ADAPTER}.weight") for part in _PARTS)
        if field == "weight" and a is not None and b is not None:
            wide = torch.promote_types(value.dtype, torch.float32)
            change = scaling * (b.to(wide) @ a.to(wide))
            whole = value.to(wide).T if layer in transposed else value.to(wide)
            whole = adapted_weight(whole, change, None if magnitude is None else magnitude.to(wide))
            value = (whole.T.contiguous() if layer in transposed else whole).to(value.dtype)
        result[name] = value
    return result


def stored_transposed(model: nn.Module) -> set[str]:
    """Names of the modules that keep their matrix as (in, out), as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    return {name for name, module in model.named_modules() if isinstance(module, Conv1D)}


# --- peft's folder


def write_adapter(folder: Path, weights: Mapping[str, Tensor], config: Any, whole: Sequence[str]) -> None:
    """Write adapters alone, as `peft.PeftModel.from_pretrained` reads them.

    Args:
        folder: an empty one.
        weights: the model's, by name, adapters among them.
        config: a `peft.LoraConfig`.
        whole: names of the modules that are stored whole.
    """
    from safetensors.torch import save_file

    kept = {name: value for name, value in weights.items() if is_adapter(name) or within(name, whole)}
    stored = {peft_name(name): value.detach().cpu().contiguous().clone() for name, value in kept.items()}
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})


def peft_name(name: str) -> str:
    """Under which name peft stores a parameter."""
    name = name.replace(f".lora_magnitude_vector.{ADAPTER}.weight", ".lora_magnitude_vector")
    return _PREFIX + name.replace(f".{ADAPTER}.", ".").replace(".base_layer.", ".")


def within(name: str, modules: Sequence[str]) -> bool:
    """Is it a parameter of one of these modules?"""
    return any(f".{name}".find(f".{module}.") >= 0 for module in modules)


def is_adapter_folder(path: str | Path) -> bool:
    """Does it hold adapters in place of a model?"""
    return (Path(path) / CONFIG).is_file()


def adapters_at(place: str, revision: str | None = None) -> Path | None:
    """The folder of the adapters that a hub id or a folder holds in place of a model, None if it holds none.

    Args:
        place: hub id or folder.
        revision: branch, tag or commit on the hub, from which their files are fetched.
    """
    from transformers.utils import cached_file

    if Path(place).expanduser().exists():
        return Path(place) if is_adapter_folder(place) else None
    found = []
    for name in (CONFIG, WEIGHTS):
        try:
            found.append(cached_file(place, name, revision=revision or "main"))
        except (OSError, ValueError):  # reading it as a model, or its weights, will say what is wrong
            break
    return Path(found[0]).parent if found and found[0] else None


def read_config(folder: str | Path, argument: str) -> dict[str, Any]:
    """The fields of `adapter_config.json`.

    Raises:
        UserError: it is not there or not LoRA's, or asks for what is not done here, by name.
    """
    path = Path(folder) / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{argument}: expected a folder of adapters with {CONFIG} and {WEIGHTS}, got {str(folder)!r}: "
            f"{reason(error)}"
        ) from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        kind = content.get("peft_type") if isinstance(content, dict) else None
        raise UserError(f"{argument}: expected adapters of peft's type LORA, {str(folder)!r} holds {kind}")
    usual: dict[str, Any] = {"bias": "none", "lora_bias": False}
    usual |= dict.fromkeys(("rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices"))
    for field, value in usual.items():
        if (content.get(field) or value) != value:
            raise UserError(f"{argument}: expected adapters without {field}, {str(folder)!r} has {content[field]!r}")
    start = content.get("init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "orthogonal"):  # the base was changed along with them
        raise UserError(
            f"{argument}: expected adapters of an unchanged base, {str(folder)!r} has init_lora_weights {start}"
        )
    return content


def read_weights(folder: str | Path, argument: str) -> dict[str, Tensor]:
    """By the names that peft stores.

    Raises:
        UserError: they are not there, not in safetensors' format, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{argument}: expected adapters in {path}, which cannot be read: {reason(error)}") from error
