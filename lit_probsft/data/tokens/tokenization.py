"""Conversations to tokens and labels: the one place where the mask is made, in four steps.

1. Conversation to text: a chat template renders it (`rendering.py`), or the turns are concatenated (`format: plain`).
   Control tokens inside the turns' texts are quoted before, and written as ordinary text in step 4
   (`control_tokens.py`).
2. Text to spans: where the assistant's supervised turns are in the text (`turns.py`), each with its end token.
3. Reasoning: dropped before step 1, or excluded from the spans after step 2 (`reasoning.py`).
4. Text and spans to tokens and labels (`encoding.py`).

A mask that supervises nothing, everything, or not the end of a turn is refused with the text.

Before these steps, a conversation may be split into several, each of which becomes a document (`history.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lit_probsft.data.rows.conversation import is_supervised
from lit_probsft.data.rows.formats import IGNORED as IGNORED
from lit_probsft.data.tokens.control_tokens import (
    Quoted,
    SpecialTokensInText,
    errors_restored,
    find_control_token,
    quote_control_tokens,
    restore,
)
from lit_probsft.data.tokens.encoding import encode_spans
from lit_probsft.data.tokens.history import FindTurns, History, exact_turns, split_at_rewritten_turns
from lit_probsft.data.tokens.prompts import describe_prompt
from lit_probsft.data.tokens.reasoning import drop_reasoning, exclude_reasoning, mask_reasoning
from lit_probsft.data.tokens.rendering import Renderer, Span, adds_bos, chosen_template, highlight
from lit_probsft.data.tokens.turns import ends_with_special, render_and_find_turns
from lit_probsft.errors import UserError

Turns = Literal["all", "first", "last"]
"""Which of the assistant's turns are supervised."""

Reasoning = Literal["learn", "mask", "drop"]
"""The assistant's reasoning is supervised, kept without supervision, or dropped before rendering."""


def tokenize_conversation(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    plain_text: bool = False,
    require_end_of_turn: bool = True,
    turns: Turns = "all",
    reasoning: Reasoning = "learn",
    special_tokens_in_text: SpecialTokensInText = "text",
) -> dict[str, list[int]]:
    """Tokenize a conversation and mask everything but the assistant's turns.

    Each supervised turn reaches up to and including the special token that ends it. Turns with `train: False` are not
    supervised. Turns are found by the template's `{% generation %}` marks if it has any, otherwise by rendering the
    conversation up to each turn; see `lit_probsft.data.tokens.turns`.

    Args:
        tokenizer: a fast tokenizer.
        messages: `{"role", "content", ...}` as returned by `validate_conversation`, ending with an assistant turn.
        tools: JSON schemas of the tools that may be called, for the template.
        chat_template: Jinja text, instead of the tokenizer's own template.
        template_options: further names that the template may read, such as `{"enable_thinking": False}`.
        plain_text: concatenate the turns without a template, with the end-of-text token after each assistant turn, and
            the beginning-of-text token first if this tokenizer adds one.
        require_end_of_turn: refuse a turn that does not end with a supervised special token. A model trained without
            one does not stop.
        turns: supervise all assistant turns, or only the first or last.
        reasoning: what to do with `<think>...</think>` and `reasoning_content`.
        special_tokens_in_text: write control tokens inside a turn's text or the tools as ordinary `text`, `refuse`
            them, or `keep` them as control tokens. Plain text keeps them unless they are refused, since nothing else
            writes control tokens there.

    Returns:
        `input_ids` (T,) and `labels` (T,), equal to the ids where supervised and -100 elsewhere (not shifted).

    Raises:
        UserError: there is no template, or it refuses the roles; a turn cannot be found in the rendered text, or the
            text lacks part of the conversation; the mask supervises nothing, everything, or not the end of a turn; a
            control token in a text is refused, or cannot be written as text. The message shows the text.
    """
    messages = drop_reasoning(messages) if reasoning == "drop" else messages
    template: dict[str, Any] = {"chat_template": chat_template, "template_options": template_options}
    policy = _policy(special_tokens_in_text, plain_text=plain_text)
    messages, tools, quoted = _quote(tokenizer, messages, tools, policy, **template)
    supervised_turns = _supervised_turns(messages, turns)
    with errors_restored(quoted):
        text, spans = render_and_find_turns(
            tokenizer,
            messages,
            supervised_turns,
            tools=tools,
            plain_text=plain_text,
            **template,
        )
        if require_end_of_turn:
            _check_end_of_turns(tokenizer, text, spans, given_template=chat_template is not None)
        if reasoning == "mask":
            spans = mask_reasoning(text, spans, [messages[index] for index in supervised_turns])
        input_ids, labels = encode_spans(tokenizer, text, spans, quoted)
        supervised = len(labels) - labels.count(IGNORED)
        if supervised in (0, len(labels)):
            raise UserError(
                "messages" if plain_text else "chat_template",
                f"the mask supervises {'everything' if supervised else 'nothing'}: {supervised} of {len(labels)} "
                f"tokens; the supervised part is between ⟦ and ⟧:\n{highlight(text, spans)}",
            )
    return {"input_ids": input_ids, "labels": labels}


def split_conversation(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    plain_text: bool = False,
    turns: Turns = "all",
    reasoning: Reasoning = "learn",
    special_tokens_in_text: SpecialTokensInText = "text",
) -> list[list[Mapping[str, Any]]]:
    """Split a conversation in whose text the template rewrites earlier turns; see `lit_probsft.data.tokens.history`.

    Arguments as `tokenize_conversation`.

    Returns:
        Conversations for `tokenize_conversation`, with the same options: the original alone if nothing is rewritten.

    Raises:
        UserError: the conversation up to one of the turns cannot be used.
    """
    messages = drop_reasoning(messages) if reasoning == "drop" else messages
    template: dict[str, Any] = {"chat_template": chat_template, "template_options": template_options}
    policy = _policy(special_tokens_in_text, plain_text=plain_text)
    shown, tools, quoted = _quote(tokenizer, messages, tools, policy, **template)
    find_turns: FindTurns = functools.partial(
        render_and_find_turns, tokenizer, tools=tools, plain_text=plain_text, **template
    )
    with errors_restored(quoted):
        parts = split_at_rewritten_turns(find_turns, shown, _supervised_turns(messages, turns))
    return [
        [
            {**message, "train": False} if turn.get("train") is False else message
            for message, turn in zip(messages, part, strict=False)  # a part is shorter
        ]
        for part in parts
    ]


def tokenize_prompt(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    plain_text: bool = False,
    turns: Turns = "all",
    reasoning: Reasoning = "learn",
    special_tokens_in_text: SpecialTokensInText = "text",
    rewritten_history: History = "keep",
) -> list[int]:
    """Tokenize a conversation up to its last assistant turn, for generation.

    Without a final assistant turn, tokenizes the whole conversation. Returns the same tokens that training has before
    that turn; with `rewritten_history: split`, the tokens before it in its own document. Other arguments as
    `tokenize_conversation`.
    """
    messages = drop_reasoning(messages) if reasoning == "drop" else messages
    answer = messages[-1] if messages[-1]["role"] == "assistant" else None
    prompt = messages if answer is None else messages[:-1]
    template: dict[str, Any] = {"chat_template": chat_template, "template_options": template_options}
    policy = _policy(special_tokens_in_text, plain_text=plain_text)
    prompt, tools, quoted = _quote(tokenizer, prompt, tools, policy, generation_prompt=True, **template)
    find_turns: FindTurns = functools.partial(
        render_and_find_turns, tokenizer, tools=tools, plain_text=plain_text, answer=answer, **template
    )
    # Training cuts the text at the supervised turns, so the prompt is cut there too.
    cuts = [index for index in _supervised_turns(messages, turns) if index < len(prompt)]
    with errors_restored(quoted):
        if rewritten_history == "split":
            cuts = exact_turns(find_turns, prompt, cuts)
        text, spans = find_turns(prompt, cuts, generation_prompt=True)
        if reasoning == "mask":
            spans = exclude_reasoning(text, spans)
        return encode_spans(tokenizer, text, spans, quoted)[0]


def describe_prompt_of(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    plain_text: bool = False,
    reasoning: Reasoning = "learn",
) -> str:
    """Say how the last answer of a conversation is asked for; see `lit_probsft.data.tokens.prompts`.

    Arguments as `tokenize_conversation`. Returns an empty text if there is nothing to say.
    """
    if plain_text or messages[-1]["role"] != "assistant":
        return ""
    messages = drop_reasoning(messages) if reasoning == "drop" else messages
    render = Renderer(tokenizer, chosen_template(tokenizer, chat_template), tools, template_options or {})
    return describe_prompt(render, messages[:-1], messages[-1])


def tokenize_text(
    tokenizer: Any, text: str, *, special_tokens_in_text: SpecialTokensInText = "text"
) -> dict[str, list[int]]:
    """Tokenize a text without turns and supervise all of it, except a beginning-of-text token that the tokenizer adds.

    Appends the end-of-text token unless the text ends with it. Other control tokens in the text stay control tokens,
    unless `special_tokens_in_text` is `refuse`.

    Returns:
        `input_ids` (T,) and `labels` (T,), as `tokenize_conversation`.

    Raises:
        UserError: the tokenizer has no end-of-text token, or a control token in the text is refused.
    """
    end = tokenizer.eos_token
    if end is None:
        raise UserError("text", "a text ends with the tokenizer's eos token, and this tokenizer has none")
    begin = tokenizer.bos_token if adds_bos(tokenizer) else ""
    inner = text.removeprefix(begin).removesuffix(end)
    if special_tokens_in_text == "refuse":
        _refuse(find_control_token(tokenizer, [], inner))
    whole = begin + inner + end
    input_ids, labels = encode_spans(tokenizer, whole, [(len(begin), len(whole))])
    return {"input_ids": input_ids, "labels": labels}


def _supervised_turns(messages: Sequence[Mapping[str, Any]], turns: Turns) -> list[int]:
    """Indices of the messages to supervise."""
    indices = [index for index, message in enumerate(messages) if is_supervised(message)]
    return {"all": indices, "first": indices[:1], "last": indices[-1:]}[turns]


def _policy(special_tokens_in_text: SpecialTokensInText, *, plain_text: bool) -> SpecialTokensInText:
    """What to do with control tokens in this format. In plain text no template writes any, so the user's own stay."""
    return "keep" if plain_text and special_tokens_in_text == "text" else special_tokens_in_text


def _quote(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    policy: SpecialTokensInText,
    *,
    chat_template: str | None,
    template_options: Mapping[str, Any] | None,
    generation_prompt: bool = False,
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None, Quoted]:
    """The messages and tools with their control tokens quoted, or refused; see `quote_control_tokens`."""
    if policy == "keep":
        return messages, tools, {}
    if policy == "refuse":
        _refuse(find_control_token(tokenizer, messages, tools))
        return messages, tools, {}
    quoted_messages, quoted_tools, quoted = quote_control_tokens(tokenizer, messages, tools)
    if quoted:
        template, options = chosen_template(tokenizer, chat_template), template_options or {}
        original = Renderer(tokenizer, template, tools, options)(messages, generation_prompt)
        text = Renderer(tokenizer, template, quoted_tools, options)(quoted_messages, generation_prompt)
        if restore(text, quoted) != original:
            raise UserError(
                "chat_template",
                f"the template changes control tokens inside a text, {find_control_token(tokenizer, messages, tools)}, "
                "so they cannot be written as ordinary text; `data.special_tokens_in_text: keep` leaves them to the "
                f"template:\n{highlight(original, [])}",
            )
    return quoted_messages, quoted_tools, quoted


def _refuse(control_token: str | None) -> None:
    if control_token is not None:
        raise UserError("special_tokens_in_text", f"expected no control token in a text, got {control_token}")


def _check_end_of_turns(tokenizer: Any, text: str, spans: Sequence[Span], *, given_template: bool) -> None:
    """Refuse a turn that does not end with a supervised special token."""
    if all(ends_with_special(tokenizer, text, span) for span in spans):
        return
    template = "the given template" if given_template else "the tokenizer's chat template"
    raise UserError(
        "require_end_of_turn",
        "the assistant's turn does not end with a supervised special token, so the model would never learn to stop "
        f"(`false` allows it); {template} writes none, or marks it as not generated; the supervised part is between "
        f"⟦ and ⟧:\n{highlight(text, spans)}",
    )
