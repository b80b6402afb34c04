"""Tokenizes one row: conversation, prompt or text in, document or the reason for having none out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lit_probsft.data.batches.store import Document
from lit_probsft.data.rows.formats import Conversation, Example, Text
from lit_probsft.data.rows.splits import Item, LoadedSource
from lit_probsft.data.tokens.rendering import check_template
from lit_probsft.data.tokens.tokenization import (
    IGNORED,
    Reasoning,
    Turns,
    describe_prompt_of,
    tokenize_conversation,
    tokenize_prompt,
    tokenize_text,
)
from lit_probsft.errors import UserError, errors_within


@dataclass(frozen=True)
class Recipe:
    """The options that decide the tokens of a row, apart from the tokenizer.

    Attributes:
        prompts: tokenize only what precedes the last answer, for generation; `max_length` is then ignored.
    """

    chat_template: str | None = None
    plain_text: bool = False
    require_end_of_turn: bool = True
    max_length: int | None = None
    overflow: str = "error"
    prompts: bool = False
    turns: Turns = "all"
    reasoning: Reasoning = "learn"
    on_bad_row: str = "error"


@dataclass(frozen=True)
class Outcome:
    """The result of tokenizing a row.

    Attributes:
        document: None if the row is dropped or skipped.
        status: `kept` (whole), `truncated`, `dropped` (too long or a duplicate) or `skipped` (unusable).
        reason: why the row is dropped or skipped.
        length: tokens before truncation.
        prompt: how the last answer is asked for, if there is something to say. Only looked for on request.
    """

    document: Document | None
    status: Literal["kept", "truncated", "dropped", "skipped"] = "kept"
    reason: str = ""
    length: int = 0
    prompt: str = ""


DUPLICATE = Outcome(None, "dropped", "data.duplicates: it is in data.validation too")
"""The outcome of a training row that `duplicates: remove` drops."""


@dataclass
class RowTokenizer:
    """Tokenizes the rows of a source.

    Attributes:
        describe_prompts: say how each last answer is asked for, which takes longer.
    """

    loaded: LoadedSource
    tokenizer: Any
    recipe: Recipe
    describe_prompts: bool = False

    def check_template(self) -> None:
        """Refuse a chat template that is broken for every row.

        Raises:
            UserError: the template is not valid Jinja.
        """
        if self.recipe.chat_template is not None:
            with errors_within("data"):
                check_template(self.tokenizer, self.recipe.chat_template)

    def tokenize_row(self, index: int) -> Outcome:
        """Tokenizes row `index` of the source; see `tokenize_item`."""
        return self.tokenize_item(self.loaded.item(index), index)

    def tokenize_item(self, item: Item, row: int) -> Outcome:
        """Tokenizes a row.

        Args:
            item: the row.
            row: the number that its document gets as `row`.

        Raises:
            UserError: the row is unusable, and `on_bad_row` is `error`.
        """
        try:
            return self._tokenize(item, row)
        except UserError as error:
            if self.recipe.on_bad_row == "skip":
                return Outcome(None, "skipped", str(error))
            raise

    def _tokenize(self, item: Item, row: int) -> Outcome:
        recipe = self.recipe
        example = self.loaded.example(item)
        with errors_within("data", self.loaded.where(item)):
            ids, labels = self._tokens(example)
            prompt = self._describe_prompt(example)
        limit, length = recipe.max_length, len(ids)
        if limit is None or length <= limit or recipe.prompts:
            return Outcome(Document(row, ids, labels, example.weight, item.source), length=length, prompt=prompt)
        if recipe.overflow == "error":
            raise UserError(
                "data.max_length",
                f"expected at most {limit} tokens, got {length}{self.loaded.where(item)}; "
                "`data.overflow: truncate` shortens such rows, `data.overflow: drop` leaves them out",
            )
        too_long = f"data.max_length: {length} tokens, at most {limit} are kept"
        if recipe.overflow == "drop":
            return Outcome(None, "dropped", too_long, length)
        # The first label does not count, as no position predicts it.
        if all(label == IGNORED for label in labels[1:limit]):
            return Outcome(None, "dropped", f"{too_long}, and none of the first {limit} is supervised", length)
        document = Document(row, ids[:limit], labels[:limit], example.weight, item.source)
        return Outcome(document, "truncated", length=length, prompt=prompt)

    def _describe_prompt(self, example: Example) -> str:
        if not self.describe_prompts or not isinstance(example, Conversation):
            return ""
        recipe = self.recipe
        return describe_prompt_of(
            self.tokenizer,
            example.messages,
            tools=example.tools,
            chat_template=recipe.chat_template,
            plain_text=recipe.plain_text,
            reasoning=recipe.reasoning,
        )

    def _tokens(self, example: Example) -> tuple[list[int], list[int]]:
        recipe = self.recipe
        if isinstance(example, Conversation):
            options: dict[str, Any] = {
                "tools": example.tools,
                "chat_template": recipe.chat_template,
                "plain_text": recipe.plain_text,
                "turns": recipe.turns,
                "reasoning": recipe.reasoning,
            }
            if recipe.prompts:
                ids = tokenize_prompt(self.tokenizer, example.messages, **options)
                return ids, [IGNORED] * len(ids)
            tokens = tokenize_conversation(
                self.tokenizer, example.messages, require_end_of_turn=recipe.require_end_of_turn, **options
            )
            return tokens["input_ids"], tokens["labels"]
        if recipe.prompts:
            raise UserError("predict", f"expected rows with turns to answer, got {type(example).__name__.lower()}")
        if isinstance(example, Text):
            tokens = tokenize_text(self.tokenizer, example.text)
            return tokens["input_ids"], tokens["labels"]
        return example.input_ids, example.labels
