"""Turns a row into a training example: a conversation, a text, or token ids made elsewhere.

The format is recognized from the row's columns unless it is given.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from lit_probsft.data.rows.columns import (
    check_placeholders,
    columns_of,
    fill_template,
    listed,
    missing_column,
    placeholders,
    shown_value,
    text_field,
    with_nested,
)
from lit_probsft.data.rows.conversation import Message, validate_conversation
from lit_probsft.data.rows.labels import name_of_label
from lit_probsft.data.rows.null_fill import turns_without_nulls, without_nulls
from lit_probsft.data.rows.opening import with_opening
from lit_probsft.data.rows.template_options import TEMPLATE_OPTIONS, validate_template_options
from lit_probsft.data.rows.tool_calls import validate_functions, validate_tools
from lit_probsft.errors import UserError

FORMATS = ("messages", "sharegpt", "prompt", "alpaca", "tokens", "text")
"""In the order in which they are tried."""

IGNORED = -100
"""The label of a token that is not supervised."""

MAX_WEIGHT = 1e9
"""The largest weight of a row. The squares of a step's gradient, summed over a million tokens, must stay below 3e38."""


@dataclass(frozen=True)
class Conversation:
    """Turns; the assistant's are supervised.

    Attributes:
        messages: see `Message`.
        tools: JSON schemas of the tools that may be called, for the chat template.
        template_options: further names that the chat template may read, such as `enable_thinking`.
        weight: factor of the row's token losses in the sum of a step.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    weight: float = 1.0
    template_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """A text without turns, supervised from its first character to the end-of-text token."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Tokens:
    """Token ids with their mask: `labels` (T,) equal `input_ids` (T,) where supervised and are -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]
    weight: float = 1.0


Example = Conversation | Text | Tokens
"""A training example."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a row to read, and as what. None means: recognize it from the columns.

    Attributes:
        format: one of `FORMATS`.
        prompt, response: columns, or templates such as `{question}\\nThink step by step.`, given together. A literal
            brace is doubled; `{}` stays as it is. A field of a nested column has a dotted name.
        messages: the column with the turns.
        text: the column with a text without turns.
        system: a text (or template) that opens every conversation without a system turn, instead of the column
            `system`.
        weight: the column with the row's weight, a number from 0 to `MAX_WEIGHT`.
        require_response: refuse rows without a response. Prediction does not: it accepts a missing or empty one.

    Raises:
        UserError: the arguments contradict each other.
    """

    format: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    system: str | None = None
    weight: str | None = None
    require_response: bool = True

    def __post_init__(self) -> None:
        named = {
            "prompt": self.prompt is not None or self.response is not None,
            "messages": self.messages is not None,
            "text": self.text is not None,
        }
        given = [name for name, is_given in named.items() if is_given]
        if len(given) > 1:
            raise UserError(
                given[-1],
                f"expected either `messages`, or `prompt` with `response`, or `text`, got {' and '.join(given)}",
            )
        for argument, value, other in (("prompt", self.prompt, "response"), ("response", self.response, "prompt")):
            if given == ["prompt"] and value is None and (self.require_response or argument == "prompt"):
                raise UserError(argument, f"expected a column or a template, since `{other}` is given")
        fitting = {"sharegpt": "messages"}.get(self.format or "", self.format)
        if self.format is not None and given and given != [fitting]:
            raise UserError(given[0], f"expected none with `format: {self.format}`, got {getattr(self, given[0])!r}")

    def recognize(self, columns: Sequence[str]) -> str:
        """Return the format of rows with these columns.

        Raises:
            UserError: no format fits.
        """
        for name, value in (("prompt", self.prompt), ("messages", self.messages), ("text", self.text)):
            if value is not None:
                return name
        if self.format is not None:
            return self.format
        for name in FORMATS:
            if all(column in columns for column in self._needed(name)):
                return name
        for name, other in (("response", "prompt"), ("prompt", "response")):
            if name in columns:
                raise UserError(other, f"{missing_column(other, columns)} Name the one to use.")
        raise UserError(
            "prompt",
            "expected the columns of a known format: `messages`, `conversations`, `prompt` and `response`, "
            "`instruction` and `output`, `input_ids` and `labels`, or `text`; the columns are "
            f"{listed(columns)}. Name the ones to use with `prompt` and `response`, `messages` or `text`.",
        )

    def used(self, columns: Sequence[str]) -> list[str]:
        """Return those of a row's columns that its example is made of, in their order; all if no format fits.

        A nested column counts as used if one of its fields is.
        """
        try:
            name = self.recognize(columns)
        except UserError:
            return list(columns)
        named = [column for column in _OPTIONAL[name] if column != "system" or self.system is None]
        if name == "prompt":
            named += [self.prompt or "prompt", self.response or "response"]
            named += [*placeholders(self.prompt or ""), *placeholders(self.response or "")]
        else:
            named += self._required(name)
        named += placeholders(self.system or "")
        return columns_of(named if self.weight is None else [*named, self.weight], columns)

    def check(self, columns: Sequence[str]) -> None:
        """Refuse missing columns before any row is used.

        Raises:
            UserError: names the argument at fault.
        """
        name = self.recognize(columns)
        if self.weight is not None and self.weight not in columns:
            raise UserError("weight", missing_column(self.weight, columns))
        if name == "prompt":
            check_placeholders(self.prompt or "prompt", columns, "prompt")
            if self.require_response or self.response is not None:
                check_placeholders(self.response or "response", columns, "response")
            return
        for column in self._required(name):
            if column not in columns:
                argument = name if column == getattr(self, name, None) else "format"
                raise UserError(argument, missing_column(column, columns))

    def example(self, row: Mapping[str, Any], *, null_fill: bool = False) -> Example:
        """Return the training example in `row`.

        Args:
            row: by column.
            null_fill: the row comes from Arrow, which adds nulls. Null fields of tools, and of mappings in turns, are
                dropped.

        Raises:
            UserError: a column is missing, empty or of the wrong type, or turns are out of order. Names the argument
                at fault.
        """
        row = with_nested(row, used_columns(self, tuple(row)))
        example = self._example(row, _checked_format(self, tuple(row)), null_fill)
        return example if self.weight is None else replace(example, weight=_weight(row[self.weight], self.weight))

    def _example(self, row: Mapping[str, Any], name: str, null_fill: bool) -> Example:
        if name == "text":
            column = self.text or "text"
            return Text(text_field(row[column], f"text: column {column!r}"))
        if name == "tokens":
            return _tokens(row["input_ids"], row["labels"])
        tools = None
        if name in ("messages", "sharegpt"):
            turns, tools = self._turns_and_tools(row, self._required(name)[0], null_fill)
        elif name == "alpaca":
            turns = _alpaca(row, self.require_response or bool(name_of_label(row.get("output"))))
        else:
            turns = [{"role": "user", "content": fill_template(self.prompt or "prompt", row, argument="prompt")}]
            response = self.response or "response"
            # A template is not a column.
            if self.require_response or name_of_label(row.get(response, self.response)):
                answer = fill_template(response, row, argument="response")
                turns.append({"role": "assistant", "content": answer})
        options = validate_template_options(row.get(TEMPLATE_OPTIONS), argument=TEMPLATE_OPTIONS)
        turns = with_opening(turns, row, self.system, history="history" in _OPTIONAL[name])
        return Conversation(turns, tools, template_options=options)

    def _turns_and_tools(
        self, row: Mapping[str, Any], column: str, null_fill: bool
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        turns, tools, functions = row[column], row.get("tools"), row.get("functions")
        if null_fill:
            turns = turns_without_nulls(turns)
            tools, functions = without_nulls(tools), without_nulls(functions)
        messages = validate_conversation(turns, argument="messages", require_answer=self.require_response)
        return messages, validate_tools(tools) or validate_functions(functions)

    def _required(self, name: str) -> tuple[str, ...]:
        """The columns that a row of this format must have, as named by the arguments."""
        if name in ("messages", "sharegpt") and self.messages is not None:
            return (self.messages,)
        return (self.text,) if name == "text" and self.text is not None else self._needed(name)

    def _needed(self, name: str) -> tuple[str, ...]:
        """The columns by which a format is recognized."""
        return _NEEDED[name] if self.require_response or name not in _WITH_RESPONSE else _NEEDED[name][:-1]


# Most rows have the same columns as the row before.


@functools.lru_cache(maxsize=256)
def used_columns(columns: Columns, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a row's columns that its example is made of, see `Columns.used`."""
    return tuple(columns.used(names))


@functools.lru_cache(maxsize=256)
def unused_columns(columns: Columns, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a row's other columns."""
    used = columns.used(names)
    return tuple(name for name in names if name not in used)


@functools.lru_cache(maxsize=256)
def _checked_format(columns: Columns, names: tuple[str, ...]) -> str:
    """The format of a row with these columns, see `Columns.check`."""
    columns.check(names)
    return columns.recognize(names)


_NEEDED = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt": ("prompt", "response"),
    "alpaca": ("instruction", "output"),
    "tokens": ("input_ids", "labels"),
    "text": ("text",),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "messages": ("tools", "functions", "system", "chat_template_kwargs"),
    "sharegpt": ("tools", "functions", "system", "history", "chat_template_kwargs"),
    "prompt": ("system", "chat_template_kwargs"),
    "alpaca": ("input", "output", "system", "history", "chat_template_kwargs"),
    "tokens": (),
    "text": (),
}
"""The columns that are read where a row has them."""

_WITH_RESPONSE = ("prompt", "alpaca")
"""Formats whose last column is the response."""


def _weight(value: Any, column: str) -> float:
    is_number = isinstance(value, int | float | str | Decimal) and not isinstance(value, bool)
    try:  # a CSV file has strings only
        weight = float(value) if is_number else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        raise UserError("weight", f"column {column!r}: expected a number from 0 to 1e9, got {shown_value(value)}")
    return weight


def _alpaca(row: Mapping[str, Any], with_response: bool) -> list[Message]:
    """The instruction, its input (which may be empty) after a blank line, and the output."""
    question = text_field(row["instruction"], "instruction")
    context = text_field(row.get("input") or "", "input", empty=True)
    turns: list[Message] = [{"role": "user", "content": f"{question}\n\n{context}" if context.strip() else question}]
    if with_response:
        turns.append({"role": "assistant", "content": text_field(row["output"], "output")})
    return turns


def _tokens(input_ids: Any, labels: Any) -> Tokens:
    for name, value in (("input_ids", input_ids), ("labels", labels)):
        integers = (
            isinstance(value, Sequence)
            and not isinstance(value, str | bytes)
            and all(isinstance(token, int) and not isinstance(token, bool) for token in value)
        )
        if not integers or not value:
            raise UserError(name, f"expected a non-empty list of integers, got {shown_value(value)}")
    if len(input_ids) != len(labels):
        raise UserError("labels", f"expected {len(input_ids)}, one for each of input_ids, got {len(labels)}")
    for position, (token, label) in enumerate(zip(input_ids, labels, strict=True)):
        if not 0 <= token < 2**31:
            raise UserError("input_ids", f"expected ids from 0 to 2**31 - 1, got {token} at position {position}")
        if label not in (token, IGNORED):
            raise UserError(
                "labels",
                f"expected the id itself ({token}), or {IGNORED} where not supervised, got {label} at position "
                f"{position} (labels are not shifted)",
            )
    if all(label == IGNORED for label in labels[1:]):
        raise UserError(
            "labels", f"the mask supervises nothing: all of {len(labels)} labels after the first are {IGNORED}"
        )
    return Tokens(list(input_ids), list(labels))
