"""Gives a chat template the options of training as defaults, so that users of the model prompt it the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.tokens.rendering import chosen_template
from lit_probsft.errors import UserError, near_matches

_NAME = re.compile(r"[A-Za-z_]\w*")


def check_template_reads(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that the template never mentions, since they would change nothing.

    Args:
        tokenizer: provides the template.
        options: by name.

    Raises:
        UserError: names the option.
    """
    if not options:
        return
    names = dict.fromkeys(_NAME.findall(chosen_template(tokenizer, None)))
    for name in options:
        if name not in names:
            raise UserError(
                "template_options", f"the chat template does not mention {name!r}.{near_matches(name, names)}"
            )


def with_defaults(chat_template: Any, options: Mapping[str, Any]) -> Any:
    """Return a template that uses `options` where its caller gives none.

    Args:
        chat_template: Jinja text, or several templates by name.
        options: plain data by name.
    """
    if isinstance(chat_template, Mapping):
        return {name: with_defaults(template, options) for name, template in chat_template.items()}
    # Templates are rendered without the line break after a block.
    lines = [f"{{% set {name} = {name} if {name} is defined else {_literal(options[name])} %}}\n" for name in options]
    return "".join([*lines, chat_template])


def _literal(value: Any) -> str:
    """Plain data as a Jinja expression."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)
