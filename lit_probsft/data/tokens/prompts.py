"""Chooses the prompt that asks for an answer: with reasoning or without.

Many templates of models that reason open the reasoning in the generation prompt (`<think>`). An answer without
reasoning cannot follow that. Most of these templates have a switch with which the prompt closes the reasoning at once.
The switch is set as the answer needs it, unless the user has set it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.tokens.reasoning import opens_reasoning, reasoning_of
from lit_probsft.data.tokens.rendering import Renderer

_SWITCHES = ("enable_thinking", "thinking")
"""Names that templates have for the option that turns reasoning on or off."""


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
    unwanted = "</think>" if reasons else "<think>"
    if prompt.rstrip().endswith(unwanted):
        for switch in _SWITCHES:
            if switch in render.options or not re.search(rf"\b{switch}\b", render.template):
                continue
            switched = render.with_options(**{switch: reasons})
            other = switched(messages, True)
            if not other.rstrip().endswith(unwanted):
                return switched, other
    return render, prompt


def describe_prompt(render: Renderer, messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> str:
    """Say how an answer is asked for if that is not the template's default, or if the answer has to close reasoning.

    Arguments and errors as `prompt_for`. Returns an empty text if there is nothing to say.
    """
    chosen, prompt = prompt_for(render, messages, answer)
    reasons = bool(reasoning_of(answer))
    if option := _switched(render, chosen):
        why = "has reasoning" if reasons else "has no reasoning"
        return (
            f"prompted with `{option}`, because the last answer {why}; "
            f"`data.template_options` sets it for prompts without an answer too"
        )
    if opens_reasoning(prompt) and not reasons:
        return "the prompt opens reasoning, which the last answer does not have, so it is trained to close it at once"
    return ""


def option_of_prompts(render: Renderer, *, reasons: bool) -> str:
    """Return the option that prompts for answers with or without reasoning have and the template's default has not.

    Args:
        render: renders prompts with the options that the user has set.
        reasons: the answers have reasoning.

    Returns:
        For example `enable_thinking: false`; empty if these prompts are the default.

    Raises:
        UserError: the template is broken, or refuses a question.
    """
    answer = {"role": "assistant", "content": "a", **({"reasoning_content": "b"} if reasons else {})}
    return _switched(render, prompt_for(render, [{"role": "user", "content": "q"}], answer)[0])


def _switched(render: Renderer, chosen: Renderer) -> str:
    """The option that `chosen` has and `render` has not, such as `enable_thinking: false`; empty without one."""
    names = chosen.options.keys() - render.options.keys()
    return ", ".join(f"{name}: {str(chosen.options[name]).lower()}" for name in names)
