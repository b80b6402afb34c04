"""Chooses the prompt that asks for an answer: with reasoning or without.

Many templates of models that reason open the reasoning in the generation prompt (`<think>`). An answer without
reasoning cannot follow that. Most of these templates have a switch with which the prompt closes the reasoning at once.
The switch is set as the answer needs it, unless the user has set it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.tokens.reasoning import split_reasoning
from lit_probsft.data.tokens.rendering import Renderer

_SWITCHES = ("enable_thinking", "thinking")
"""Names that templates have for the option that turns reasoning on or off."""

_OPENED = re.compile(r"<think>\s*\Z")
_CLOSED = re.compile(r"</think>\s*\Z")


def opens_reasoning(prompt: str) -> bool:
    """Whether a prompt ends within reasoning that it has opened."""
    return _OPENED.search(prompt) is not None


def closes_reasoning(prompt: str) -> bool:
    """Whether a prompt ends behind reasoning that it has closed."""
    return _CLOSED.search(prompt) is not None


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Return the reasoning of an assistant's turn, or an empty text."""
    apart: str = message.get("reasoning_content") or ""
    return apart.strip() or split_reasoning(message["content"])[0]


def prompt_for(
    render: Renderer, messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any] | None
) -> tuple[Renderer, str]:
    """Render the prompt that asks for an answer.

    Args:
        render: renders it with the options that the user has set.
        messages: what precedes the answer.
        answer: the answer, which says whether reasoning is asked for. None if it is unknown; then the template decides.

    Returns:
        A renderer with the options for this answer, and the prompt that it renders.

    Raises:
        UserError: the template is broken, or refuses these messages.
    """
    prompt = render(messages, True)
    if answer is None:
        return render, prompt
    reasons = bool(reasoning_of(answer))
    unwanted = _CLOSED if reasons else _OPENED
    if unwanted.search(prompt):
        for switch in _SWITCHES:
            if switch in render.options or not re.search(rf"\b{switch}\b", render.template):
                continue
            switched = render.with_options(**{switch: reasons})
            if not unwanted.search(other := switched(messages, True)):
                return switched, other
    return render, prompt


def describe_prompt(render: Renderer, messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> str:
    """Say how an answer is asked for if that is not the template's default, or if the answer has to close reasoning.

    Arguments and errors as `prompt_for`. Returns an empty text if there is nothing to say.
    """
    chosen, prompt = prompt_for(render, messages, answer)
    reasons = bool(reasoning_of(answer))
    for switch in chosen.options.keys() - render.options.keys():
        value, why = str(reasons).lower(), "has reasoning" if reasons else "has no reasoning"
        return (
            f"prompted with `{switch}: {value}`, because the last answer {why}; "
            f"`data.template_options` sets it for prompts without an answer too"
        )
    if opens_reasoning(prompt) and not reasons:
        return "the prompt opens reasoning, which the last answer does not have, so it is trained to close it at once"
    return ""
