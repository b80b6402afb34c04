"""Checks of the sizes in a transformers configuration, before a model is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_probsft.errors import UserError

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
"""Fields that must be above 0, by the names that every configuration understands."""


_LARGEST = 2**31 - 1
_MOST_LAYERS = 10_000


def check_read_sizes(config: Any, argument: str, place: str) -> None:
    """Refuse sizes in a model's config.json that no model has, before transformers builds layers of them.

    Args:
        config: as transformers reads it.
        argument: for errors.
        place: hub id or folder of the model.

    Raises:
        UserError: names the field.
    """
    text = config.get_text_config()
    for name in _SIZES:
        value, most = getattr(text, name, None), _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST
        if value is None or isinstance(value, list):
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(
                argument, f"expected {name} from 1 to {most} in the config.json of {place!r}, got {value!r}"
            )


def check_sizes(known: Any, fields: Mapping[str, Any], argument: str) -> None:
    """Refuse sizes from which transformers would build a model without layers, or one that fails in its first step.

    Args:
        known: the configuration of the model type with its defaults. A field whose default is a positive integer is a
            size or a number of something, unless it is the id of a token.
        fields: what the user sets.
        argument: for errors.

    Raises:
        UserError: names the field.
    """
    names: Mapping[str, str] = getattr(known, "attribute_map", {})
    given = {names.get(name, name): value for name, value in fields.items()}
    defaults = known.to_dict()
    sizes = {names.get(size, size) for size in _SIZES}
    for name, value in given.items():
        default = defaults.get(name)
        counts = isinstance(default, int) and not isinstance(default, bool) and default > 0
        if value is None or isinstance(value, list) or name.endswith("_token_id") or not (counts or name in sizes):
            continue
        least = 1 if name in sizes else 0
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{argument}.{name}", f"expected a whole number, at least {least}, got {value!r}")
    width, heads, groups, of_head = (
        given.get(names.get(size, size))
        for size in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    heads = heads or defaults.get(names.get("num_attention_heads", "num_attention_heads"))
    if width and heads and width % heads and not of_head:
        return  # transformers knows whether the heads have to divide the width
    if heads and groups and heads % groups:
        raise UserError(
            f"{argument}.num_key_value_heads", f"expected a divisor of num_attention_heads ({heads}), got {groups}"
        )
    # Rotary positions turn pairs of numbers. Models that turn only a part of them have a size of their own for it.
    part = defaults.get("partial_rotary_factor", 1.0) != 1.0 or "qk_rope_head_dim" in defaults
    if "rope_parameters" not in defaults or part:
        return
    if of_head and of_head % 2:
        raise UserError(f"{argument}.head_dim", f"expected an even number, got {of_head}")
    if not of_head and width and heads and width // heads % 2:
        raise UserError(
            f"{argument}.hidden_size", f"expected an even number for each of the {heads} attention heads, got {width}"
        )
