"""Splits conversations whose earlier turns the template rewrites once later turns follow.

Qwen 3, for example, drops the reasoning of all turns before the last question. An earlier turn would then be trained in
a form that the model never has to write. What it has to write is the turn as rendered when the conversation ends with
it. So a turn is exact in a longer conversation if that text, up to the turn's end, begins the longer text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from lit_probsft.data.tokens.rendering import Span

History = Literal["keep", "split"]
"""Train on earlier turns as the template rewrites them, or split the conversation into documents with exact turns."""

Message = Mapping[str, Any]

FindTurns = Callable[..., tuple[str, list[Span]]]
"""`render_and_find_turns` without its first two arguments, and with its `answer` filled in."""


def split_at_rewritten_turns(
    find_turns: FindTurns, messages: Sequence[Message], turns: Collection[int]
) -> list[list[Message]]:
    """Split a conversation into the fewest in which every supervised turn is exact.

    Each turn is supervised in one of them; `train: False` marks the other turns. A conversation ends with a turn that
    it supervises. The original is returned as it is if all turns are exact in it.

    Args:
        find_turns: renders messages and finds turns in the text.
        messages: `{"role", "content", ...}`.
        turns: indices of the messages to supervise.

    Raises:
        UserError: a turn cannot be found in the conversation that ends with it.
    """
    last = len(messages) - 1
    if set(turns) <= {last}:
        return [list(messages)]
    texts = _texts_through(find_turns, messages, turns)
    whole = texts[last] if last in texts else find_turns(messages, [])[0]
    if all(whole.startswith(through) for through in texts.values()):
        return [list(messages)]
    conversations: list[list[Message]] = []
    remaining = sorted(turns)
    while remaining:
        # "Begins" is transitive, so a turn that no later conversation includes needs one of its own.
        final = remaining[-1]
        exact = [turn for turn in remaining if texts[final].startswith(texts[turn])]
        conversations.append(_supervise(messages[: final + 1], exact))
        remaining = [turn for turn in remaining if turn not in exact]
    return conversations[::-1]


def exact_turns(find_turns: FindTurns, prompt: Sequence[Message], turns: Collection[int]) -> list[int]:
    """Return the `turns` that are exact in a prompt; arguments and errors as `split_at_rewritten_turns`."""
    text, texts = find_turns(prompt, [], generation_prompt=True)[0], _texts_through(find_turns, prompt, turns)
    return [turn for turn in turns if text.startswith(texts[turn])]


def _texts_through(find_turns: FindTurns, messages: Sequence[Message], turns: Collection[int]) -> dict[int, str]:
    """For each turn, the text of the conversation that ends with it, up to the turn's end."""
    texts = {}
    for turn in turns:
        text, spans = find_turns(messages[: turn + 1], [turn])
        texts[turn] = text[: spans[-1][1]] if spans else text
    return texts


def _supervise(messages: Sequence[Message], turns: Collection[int]) -> list[Message]:
    """The messages, with `train: False` on the assistant's turns that are not in `turns`."""
    return [
        {**message, "train": False} if message["role"] == "assistant" and index not in turns else message
        for index, message in enumerate(messages)
    ]
