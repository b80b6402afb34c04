"""Gives a chat template the options of training as defaults, so that users of the model prompt it the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.tokens.rendering import chosen_template
from lit_probsft.errors import UserError, near_matches

_GENERATION_MARKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def check_template_reads(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that the tokenizer's chat template never reads, since they would change nothing.

    Raises:
        UserError: names the option; or there is no template.
    """
    if not options:
        return
    import jinja2
    from jinja2.meta import find_undeclared_variables

    template = _GENERATION_MARKS.sub("", chosen_template(tokenizer, None))
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except jinja2.TemplateSyntaxError:
        return  # refused with its line when it renders a row
    names = find_undeclared_variables(tree)
    for name in options:
        if name not in names:
            raise UserError(
                "template_options", f"the chat template does not read {name!r}.{near_matches(name, sorted(names))}"
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
