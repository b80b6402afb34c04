"""Options that a chat template reads in addition to the messages, such as `enable_thinking`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from lit_probsft.data.rows.columns import shown_value
from lit_probsft.data.rows.null_fill import without_nulls
from lit_probsft.errors import UserError

TEMPLATE_OPTIONS = "chat_template_kwargs"
"""The column with a row's own options."""

_RESERVED = {
    *("conversations", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("return_assistant_tokens_mask", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
    *("mask_token", "additional_special_tokens"),
}
"""Names that a template gets from elsewhere: the conversation, the tokenizer or the renderer."""


def validate_template_options(value: Any, *, argument: str) -> dict[str, Any]:
    """Return options for a chat template, without those that are null.

    Args:
        value: a mapping of names to plain data, or its JSON text; null and empty text mean none.
        argument: names it in errors.

    Raises:
        UserError: it is anything else, or names something that every template gets from elsewhere.
    """
    options = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):  # any other text is refused below
            options = json.loads(value) if value.strip() else None
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in options):
        raise UserError(
            argument,
            f"expected names and values for the chat template, such as {{enable_thinking: false}}, got "
            f"{shown_value(value)}",
        )
    for name, option in options.items():
        if name in _RESERVED:
            raise UserError(argument, f"{name!r} is reserved: every chat template gets it from elsewhere")
        try:
            json.dumps(option)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{argument}.{name}",
                f"expected text, numbers, true, false, lists or mappings, got {shown_value(option)}",
            ) from error
    dropped: dict[str, Any] = without_nulls(options)
    return dropped
