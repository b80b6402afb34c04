"""Joins the prompt of a conversation's last answer with the answer: the text that the model is trained on.

The model is asked with the generation prompt, so a training text is that prompt and what the model has to write. With
most templates that is the rendering of the whole conversation. With some it is not: they open reasoning in the prompt
that the text lacks, or write the turns before the answer differently once it follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from lit_probsft.data.tokens.reasoning import opens_reasoning, reasoning_of, without_reasoning
from lit_probsft.data.tokens.rendering import Renderer
from lit_probsft.data.tokens.turn_checks import Messages, insert_probe, insert_probe_before, unused_probe
from lit_probsft.data.tokens.turn_ends import common_end
from lit_probsft.errors import UserError

_Render = Callable[[Messages], str]

_FOLLOWER = "xqzfollower"
_BROKEN_TAG = re.compile(r"[<\[][^<>\[\]]*\Z")
_CLOSING = re.compile(r"\s*</think>")


@dataclass(frozen=True)
class Joined:
    """A prompt with an answer.

    Attributes:
        text: of both.
        start: where the answer starts.
        inserted: the reasoning that the template leaves out, at the start of the answer.
        whole: the rendering of the whole conversation.
        cut: after `inserted`, the text continues with that of `whole` from here on.
    """

    text: str
    start: int
    inserted: str
    whole: str
    cut: int

    def place(self, position: int) -> int:
        """The position in `text` of a position in `whole` that is not before `cut`."""
        return position - self.cut + self.start + len(self.inserted)


def join_answer(render: Renderer, prompt: str, messages: Messages, whole: str) -> Joined | None:
    """Append to a prompt what the model has to write.

    Args:
        render: renders the prompt and the conversation.
        prompt: of the last message.
        messages: the conversation; its last message is the assistant's.
        whole: its rendering.

    Returns:
        None if the text of the conversation does not show where the answer starts.
    """
    if whole.startswith(prompt):
        return Joined(whole, len(prompt), "", whole, len(prompt))
    last = len(messages) - 1
    aligned = align(render, render, messages, last, whole, prompt)
    reasoning = ""
    if opens_reasoning(prompt) and (aligned is None or aligned.missing):
        # A template may leave out the reasoning with everything before it, so that the content has no beginning.
        reasoning = reasoning_of(messages[-1])
        messages = [*messages[:-1], without_reasoning(messages[-1])]
        whole = render(messages)
        aligned = align(render, render, messages, last, whole, prompt)
        if aligned is not None and not aligned.missing:
            return None  # it writes reasoning of its own, but not this one
    if aligned is None:
        return None
    inserted, cut = "", aligned.given
    between = whole[aligned.given : aligned.content]
    if aligned.missing and opens_reasoning(prompt):
        if _CLOSING.match(between):
            inserted = reasoning
        else:
            inserted, cut = f"{reasoning}\n</think>\n\n", aligned.content
    elif aligned.missing and not between.strip():
        cut = aligned.content
    return Joined(prompt + inserted + whole[cut:], len(prompt), inserted, whole, cut)


@dataclass(frozen=True)
class Alignment:
    """How a turn begins in a text, compared with its prompt.

    Attributes:
        given: the text before this position is given by the prompt.
        content: where the turn's content begins.
        missing: what the prompt has beyond `given`, and the text has not.
    """

    given: int
    content: int
    missing: str


def align(render: _Render, ask: Renderer, messages: Messages, index: int, text: str, prompt: str) -> Alignment | None:
    """Compare the text before a turn with the prompt that asks for the turn.

    Only what follows the content of the message before it is compared: the template may write all else differently.

    Args:
        render: renders messages as `text`.
        ask: renders the prompt for an answer.
        messages: of the text.
        index: of the turn.
        text: of the messages.
        prompt: of the messages before the turn.

    Returns:
        None if the two do not fit, or if one of the contents does not appear exactly once.
    """
    if index == 0:
        return None
    probe = unused_probe(text, prompt)
    before = insert_probe(messages, index - 1, probe)
    found = render(before), ask(before[:index], True)
    if any(one.count(probe) != 1 for one in found) or (text, prompt) != tuple(one.replace(probe, "") for one in found):
        return None
    changed = render(insert_probe_before(messages, index, probe))
    if changed == text:  # the template leaves out the empty text next to a call
        changed = render(insert_probe(messages, index, probe))
    if changed == text:
        return None
    content = changed.find(probe)
    if content < 0 or not text.startswith(changed[:content]):
        content = common_end(changed, text)
    position, asked = found[0].index(probe), found[1].partition(probe)[2]
    if content < position:
        return None
    shared = asked[: common_end(asked, text[position:content])]
    if shared != asked:
        shared = _BROKEN_TAG.sub("", shared)
    given = position + len(shared)
    missing, between = asked[given - position :], text[given:content]
    if missing and between.strip() and not (opens_reasoning(prompt) and _CLOSING.match(between)):
        return None
    if (end := ask.tokenizer.eos_token) is not None and end in missing:
        return None  # a prompt that ends the text asks for nothing
    return Alignment(given, content, missing)


def next_role(render: Renderer, messages: Messages, ending: str, special: re.Pattern[str]) -> str:
    """Return what the template writes after the last turn if another follows, up to the first special token.

    Some templates end a turn with nothing but the token of the next role, which is what stops the model.

    Args:
        render: renders the conversation.
        messages: of the conversation.
        ending: what the template writes after the content of the last turn, without a special token.
        special: matches special tokens.

    Returns:
        The text to append, empty if there is no such token.
    """
    last = len(messages) - 1
    call = (messages[-1].get("tool_calls") or [None])[-1]
    if call is None:
        follower = {"role": "user", "content": _FOLLOWER}
    else:
        identity = {"tool_call_id": call["id"]} if "id" in call else {}
        follower = {"role": "tool", "content": _FOLLOWER, "name": call["function"]["name"], **identity}
    try:
        probe = unused_probe(render(messages))
        text = render([*insert_probe(messages, last, probe), follower])
    except UserError:
        return ""
    if text.count(probe) != 1 or text.count(_FOLLOWER) != 1:
        return ""
    between = text.partition(probe)[2].partition(_FOLLOWER)[0]
    found = special.search(between)
    if found is None or not between.startswith(ending) or found[0] == render.tokenizer.bos_token:
        return ""  # a token that begins a text ends nothing
    return between[len(ending) : found.end()]
