"""Keys of turns that nothing reads: neither the project nor the chat template."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

_READ = frozenset({"role", "content", "tool_calls", "reasoning_content", "tool_call_id", "train"})


def unread_keys(template: str, messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of messages that are unknown here and that the template does not mention.

    Args:
        template: Jinja text; empty without a template.
        messages: as `validate_conversation` returns them.
    """
    further = dict.fromkeys(
        key
        for message in messages
        for key in message
        if key not in _READ and not (key == "name" and message["role"] == "tool")
    )
    return [key for key in further if not _is_mentioned(key, template)]


@functools.lru_cache(maxsize=1024)
def _is_mentioned(key: str, template: str) -> bool:
    """Whether the template has `.key`, `'key'` or `"key"`."""
    return re.search(rf"\.\s*{re.escape(key)}\b|(['\"]){re.escape(key)}\1", template) is not None
