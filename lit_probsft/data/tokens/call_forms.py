"""The form in which a chat template expects tool calls.

Most templates iterate the arguments of a call or write them with `tojson`, so they need a mapping. Others, such as
DeepSeek's, join them to a text: a mapping makes these fail, or is written as Python writes it, in single quotes. Some
write a call only in a turn whose content is null. The first conversation with calls tells which it is: it is rendered
with a probe as arguments, in one form after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lit_probsft.errors import UserError

_PROBE = "xqzargument"


class CallForm(NamedTuple):
    """How calls are given to a template.

    Attributes:
        json_text: the arguments are JSON text, otherwise a mapping.
        null_content: the content of a turn with calls and no text is null, otherwise empty.
    """

    json_text: bool
    null_content: bool


_FORMS = (CallForm(False, False), CallForm(True, False), CallForm(True, True), CallForm(False, True))
"""In the order in which they are tried."""

_found: dict[str, CallForm] = {}  # by template


def in_call_form(
    template: str, messages: Sequence[Mapping[str, Any]], render: Callable[[list[dict[str, Any]]], str]
) -> list[dict[str, Any]]:
    """Return the messages with their calls in the form that the template writes.

    Args:
        template: Jinja text.
        messages: the arguments of their calls are mappings.
        render: renders messages with the template, without changing them.
    """
    if not any(message.get("tool_calls") for message in messages):
        return [dict(message) for message in messages]
    form = _found.get(template)
    if form is None:
        form = next((form for form in _FORMS if _is_written(messages, form, render)), None)
        if form is None:  # the template fails, or leaves out these calls
            return _in_form(messages, _FORMS[0])
        _found[template] = form
    return _in_form(messages, form)


def _is_written(
    messages: Sequence[Mapping[str, Any]], form: CallForm, render: Callable[[list[dict[str, Any]]], str]
) -> bool:
    """Whether the template writes arguments in this form, and not in Python's."""
    probe = {_PROBE: _PROBE}
    try:
        text = render(_in_form(messages, form, probe))
    except UserError:
        return False
    return json.dumps(probe) in text if form.json_text else _PROBE in text and f"{{'{_PROBE}'" not in text


def _in_form(
    messages: Sequence[Mapping[str, Any]], form: CallForm, arguments: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The messages with their calls in this form, all with the same `arguments` if given."""
    result = []
    for message in messages:
        changed = dict(message)
        if message.get("tool_calls"):
            changed["tool_calls"] = [_call_in_form(call, form, arguments) for call in message["tool_calls"]]
            if form.null_content and not message["content"]:
                changed["content"] = None
        result.append(changed)
    return result


def _call_in_form(call: Mapping[str, Any], form: CallForm, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    mapping = call["function"]["arguments"] if arguments is None else arguments
    value = json.dumps(mapping, ensure_ascii=False) if form.json_text else mapping
    return {**call, "function": {**call["function"], "arguments": value}}
