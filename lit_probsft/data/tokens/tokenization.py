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
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

from lit_probsft.data.rows.conversation import is_supervised
from lit_probsft.data.rows.formats import IGNORED
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
from lit_probsft.data.tokens.turn_checks import check_context
from lit_probsft.data.tokens.turns import ends_with_special, render_and_find_turns
from lit_probsft.errors import UserError

Turns = Literal["all", "first", "last"]
"""Which of the assistant's turns are supervised."""

Reasoning = Literal["learn", "mask", "drop"]
"""The assistant's reasoning is supervised, kept without supervision, or dropped before rendering."""


class ConversationOptions(TypedDict, total=False):
    """Options of every function that tokenizes a conversation; see `tokenize_conversation`."""

    tools: Sequence[Mapping[str, Any]] | None
    chat_template: str | None
    template_options: Mapping[str, Any] | None
    plain_text: bool
    turns: Turns
    reasoning: Reasoning
    special_tokens_in_text: SpecialTokensInText


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
    prepared = _prepare(
        tokenizer,
        messages,
        tools=tools,
        chat_template=chat_template,
        template_options=template_options,
        plain_text=plain_text,
        turns=turns,
        reasoning=reasoning,
        special_tokens_in_text=special_tokens_in_text,
    )
    with errors_restored(prepared.quoted):
        text, spans = prepared.find_turns(prepared.messages, prepared.turns)
        if require_end_of_turn:
            _check_end_of_turns(tokenizer, text, spans, given_template=chat_template is not None)
        if reasoning == "mask":
            spans = mask_reasoning(text, spans, [prepared.messages[index] for index in prepared.turns])
        input_ids, labels = encode_spans(tokenizer, text, spans, prepared.quoted)
        supervised = len(labels) - labels.count(IGNORED)
        if supervised in (0, len(labels)):
            raise UserError(
                "messages" if plain_text else "chat_template",
                f"the mask supervises {'everything' if supervised else 'nothing'}: {supervised} of {len(labels)} "
                f"tokens; the supervised part is between ⟦ and ⟧:\n{highlight(text, spans)}",
            )
    return {"input_ids": input_ids, "labels": labels}


def split_conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Unpack[ConversationOptions]
) -> list[list[Mapping[str, Any]]]:
    """Split a conversation whose earlier turns the template rewrites; see `lit_probsft.data.tokens.history`.

    Returns:
        Conversations for `tokenize_conversation`, with the same options: the original alone if nothing is rewritten.

    Raises:
        UserError: the conversation up to one of the turns cannot be used.
    """
    prepared = _prepare(tokenizer, messages, **options)
    with errors_restored(prepared.quoted):
        parts = split_at_rewritten_turns(prepared.find_turns, prepared.messages, prepared.turns)
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
    rewritten_history: History = "keep",
    **options: Unpack[ConversationOptions],
) -> list[int]:
    """Tokenize a conversation up to its last assistant turn, for generation.

    Without a final assistant turn, tokenizes the whole conversation. Returns the same tokens that training has before
    that turn; with `rewritten_history: split`, the tokens before it in its own document. `options` are those
    of `tokenize_conversation`, without `require_end_of_turn`.
    """
    prepared = _prepare(tokenizer, messages, prompts=True, **options)
    prompt, find_turns = prepared.messages, prepared.find_turns
    # Training cuts the text at the supervised turns, so the prompt is cut there too.
    cuts = [index for index in prepared.turns if index < len(prompt)]
    with errors_restored(prepared.quoted):
        if rewritten_history == "split":
            cuts = exact_turns(find_turns, prompt, cuts)
        text, spans = find_turns(prompt, cuts, generation_prompt=True)
        check_context(text, prompt)
        if options.get("reasoning") == "mask":
            spans = exclude_reasoning(text, spans)
        return encode_spans(tokenizer, text, spans, prepared.quoted)[0]


def end_of_turn_id(tokenizer: Any, *, plain_text: bool = False) -> int | None:
    """The token that training puts at the end of an answer; None if answers have no end, or there is no template."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        labels = tokenize_conversation(tokenizer, messages, plain_text=plain_text)["labels"]
    except UserError:
        return None
    return next(label for label in reversed(labels) if label != IGNORED)


def describe_prompt_of(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Unpack[ConversationOptions]
) -> str:
    """Say how the last answer of a conversation is asked for; see `describe_prompt`."""
    unquoted: ConversationOptions = {**options, "special_tokens_in_text": "keep"}
    prepared = _prepare(tokenizer, messages, prompts=True, **unquoted)
    if prepared.render is None or prepared.answer is None:
        return ""
    return describe_prompt(prepared.render, prepared.messages, prepared.answer)


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


@dataclass(frozen=True)
class _Prepared:
    """A conversation before it is rendered.

    Attributes:
        messages: to render, with quoted control tokens; a prompt does not include the answer that it asks for.
        turns: indices of the messages to supervise.
        answer: what a prompt asks for, if it is known.
        quoted: what the characters in place of control tokens stand for.
        render: None for plain text.
        find_turns: renders messages and finds turns in the text.
    """

    messages: Sequence[Mapping[str, Any]]
    turns: Sequence[int]
    answer: Mapping[str, Any] | None
    quoted: Quoted
    render: Renderer | None
    find_turns: FindTurns


def _prepare(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    prompts: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    plain_text: bool = False,
    turns: Turns = "all",
    reasoning: Reasoning = "learn",
    special_tokens_in_text: SpecialTokensInText = "text",
) -> _Prepared:
    """Drop reasoning and quote or refuse control tokens. With `prompts`, the last answer is set apart."""
    messages = drop_reasoning(messages) if reasoning == "drop" else messages
    supervised = _supervised_turns(messages, turns)
    answer = messages[-1] if prompts and messages[-1]["role"] == "assistant" else None
    messages = messages if answer is None else messages[:-1]
    if special_tokens_in_text == "refuse":
        _refuse(find_control_token(tokenizer, messages, tools))
    render: Renderer | None = None
    quoted: Quoted = {}
    if plain_text:  # no template writes control tokens, so the user's own stay
        if tools:
            raise UserError("format", "plain text cannot represent tools; use a chat template that does")
        if template_options:
            raise UserError("template_options", "plain text has no chat template that could read them")
    else:
        render = Renderer(tokenizer, chosen_template(tokenizer, chat_template), tools, template_options or {})
        if special_tokens_in_text == "text":
            messages, render, quoted = _quote(render, messages, prompts)
    find_turns = functools.partial(render_and_find_turns, tokenizer, render, answer=answer)
    return _Prepared(messages, supervised, answer, quoted, render, find_turns)


def _quote(
    render: Renderer, messages: Sequence[Mapping[str, Any]], generation_prompt: bool
) -> tuple[Sequence[Mapping[str, Any]], Renderer, Quoted]:
    """The messages with their control tokens quoted, and a renderer with quoted tools; see `quote_control_tokens`."""
    quoted_messages, quoted_tools, quoted = quote_control_tokens(render.tokenizer, messages, render.tools)
    quoting = replace(render, tools=quoted_tools)
    if quoted:
        original = render(messages, generation_prompt)
        if restore(quoting(quoted_messages, generation_prompt), quoted) != original:
            token = find_control_token(render.tokenizer, messages, render.tools)
            raise UserError(
                "chat_template",
                f"the template changes control tokens inside a text, {token}, so they cannot be written as ordinary "
                f"text; `data.special_tokens_in_text: keep` leaves them to the template:\n{highlight(original, [])}",
            )
    return quoted_messages, quoting, quoted


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
