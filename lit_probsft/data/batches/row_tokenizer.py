"""Tokenizes one row: conversation, prompt or text in, documents or the reasons for having none out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lit_probsft.data.batches.store import Document
from lit_probsft.data.rows.conversation import is_supervised
from lit_probsft.data.rows.formats import IGNORED, Conversation, Example, Text
from lit_probsft.data.rows.readers import BrokenRow
from lit_probsft.data.rows.splits import Item, LoadedSource
from lit_probsft.data.tokens.control_tokens import SpecialTokensInText, find_control_token
from lit_probsft.data.tokens.history import History
from lit_probsft.data.tokens.prompts import option_of_prompts
from lit_probsft.data.tokens.reasoning import reasoning_of
from lit_probsft.data.tokens.rendering import Renderer, chosen_template, unread_keys
from lit_probsft.data.tokens.tokenization import (
    ConversationOptions,
    Reasoning,
    Turns,
    describe_prompt_of,
    split_conversation,
    tokenize_conversation,
    tokenize_prompt,
    tokenize_text,
)
from lit_probsft.errors import UserError


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
    template_options: dict[str, Any] = field(default_factory=dict)
    special_tokens_in_text: SpecialTokensInText = "text"
    rewritten_history: History = "keep"
    on_bad_row: str = "error"


@dataclass(frozen=True)
class Outcome:
    """What became of a row, or of one of the documents that a row is split into.

    Attributes:
        document: None if it is dropped or skipped.
        status: `kept` (whole), `truncated`, `dropped` (too long or a duplicate) or `skipped` (the row is unusable).
        reason: why it is dropped or skipped.
        length: tokens before truncation.
        with_control_tokens: whether its texts contain control tokens, which are written as ordinary text.
        reasons: whether a supervised turn has reasoning; None if the row has no turns.
        unused: what the row has and nothing reads: columns, and keys of turns as `messages[].key`.
        prompt: how the last answer is asked for, if there is something to say; see `RowTokenizer.inspects`.
        rewritten: whether an earlier turn is supervised as the template rewrites it; see `RowTokenizer.inspects`.
    """

    document: Document | None
    status: Literal["kept", "truncated", "dropped", "skipped"] = "kept"
    reason: str = ""
    length: int = 0
    with_control_tokens: bool = False
    reasons: bool | None = None
    unused: Sequence[str] = ()
    prompt: str = ""
    rewritten: bool = False


def as_duplicate(outcome: Outcome) -> Outcome:
    """The outcome of a training document that `duplicates: remove` drops."""
    return replace(outcome, document=None, status="dropped", reason="data.duplicates: it is in data.validation too")


@dataclass
class RowTokenizer:
    """Tokenizes the rows of a source.

    Attributes:
        inspects: fill in `prompt` and `rewritten` of outcomes, which takes longer.
    """

    loaded: LoadedSource
    tokenizer: Any
    recipe: Recipe
    inspects: bool = False

    def tokenize_row(self, index: int) -> list[Outcome]:
        """Tokenizes row `index` of the source; see `tokenize_item`."""
        return self.tokenize_item(self.loaded.item(index), index)

    def tokenize_item(self, item: Item, row: int) -> list[Outcome]:
        """Tokenizes a row.

        Args:
            item: the row.
            row: the number that its documents get as `row`.

        Returns:
            One outcome, or several if the row is split: one for each of its documents.

        Raises:
            UserError: the row is unusable, and `on_bad_row` is `error`.
        """
        try:
            example = self.loaded.example(item)
            with self.loaded.errors_of(item, "data"):
                tokenized = list(self._tokens(example))
                facts: dict[str, Any] = {
                    "with_control_tokens": self._quotes(example),
                    "reasons": self._reasons(example),
                    "unused": self._unused(example, item),
                    **(self._inspect(example) if self.inspects else {}),
                }
            documents = [Document(row, ids, labels, example.weight, item.source) for ids, labels in tokenized]
            return [replace(self._limit(document, item), **facts) for document in documents]
        except UserError as error:
            if self.recipe.on_bad_row == "skip":
                return [Outcome(None, "skipped", str(error))]
            raise

    def _limit(self, document: Document, item: Item) -> Outcome:
        """Applies `max_length` to a document."""
        recipe = self.recipe
        limit, length = recipe.max_length, len(document.ids)
        if limit is None or length <= limit or recipe.prompts:
            return Outcome(document, length=length)
        if recipe.overflow == "error":
            raise UserError(
                "data.max_length",
                f"expected at most {limit} tokens, got {length}{self.loaded.where(item)}; "
                "`data.overflow: truncate` shortens such rows, `data.overflow: drop` leaves them out",
            )
        too_long = f"data.max_length: {length} tokens, at most {limit} are kept"
        if recipe.overflow == "drop":
            return Outcome(None, "dropped", too_long, length)
        ids, labels = document.ids[:limit], document.labels[:limit]
        # The first label does not count, as no position predicts it.
        if all(label == IGNORED for label in labels[1:]):
            return Outcome(None, "dropped", f"{too_long}, and none of the first {limit} is supervised", length)
        return Outcome(document._replace(ids=ids, labels=labels), "truncated", length=length)

    def _unused(self, example: Example, item: Item) -> list[str]:
        assert not isinstance(item.row, BrokenRow)
        keys: list[str] = []
        if isinstance(example, Conversation):
            recipe = self.recipe
            template = "" if recipe.plain_text else chosen_template(self.tokenizer, recipe.chat_template)
            part = f"{self.loaded.source.parts[item.source]}." if self.loaded.source.parts else ""
            keys = [f"{part}messages[].{key}" for key in unread_keys(template, example.messages)]
        return [*self.loaded.source.unused(item.row), *keys]

    def _tokens(self, example: Example) -> Iterator[tuple[list[int], list[int]]]:
        """The ids and labels of each document of a row."""
        recipe = self.recipe
        if isinstance(example, Conversation):
            options = self._options(example)
            if recipe.prompts:
                history = recipe.rewritten_history
                ids = tokenize_prompt(self.tokenizer, example.messages, rewritten_history=history, **options)
                yield ids, [IGNORED] * len(ids)
                return
            conversations: Sequence[Sequence[Mapping[str, Any]]] = [example.messages]
            if recipe.rewritten_history == "split":
                conversations = split_conversation(self.tokenizer, example.messages, **options)
            for messages in conversations:
                tokens = tokenize_conversation(
                    self.tokenizer, messages, require_end_of_turn=recipe.require_end_of_turn, **options
                )
                yield tokens["input_ids"], tokens["labels"]
        elif recipe.prompts:
            raise UserError("predict", f"expected rows with turns to answer, got {type(example).__name__.lower()}")
        elif isinstance(example, Text):
            policy = recipe.special_tokens_in_text
            tokens = tokenize_text(self.tokenizer, example.text, special_tokens_in_text=policy)
            yield tokens["input_ids"], tokens["labels"]
        else:
            yield example.input_ids, example.labels

    def _quotes(self, example: Example) -> bool:
        """Whether control tokens in the texts of this row are written as ordinary text."""
        return (
            isinstance(example, Conversation)
            and not self.recipe.plain_text
            and self.recipe.special_tokens_in_text == "text"
            and find_control_token(self.tokenizer, example.messages, example.tools) is not None
        )

    def _inspect(self, example: Example) -> dict[str, Any]:
        """`prompt` and `rewritten` of a row's outcomes."""
        if not isinstance(example, Conversation):
            return {}
        return {
            "prompt": describe_prompt_of(self.tokenizer, example.messages, **self._options(example)),
            "rewritten": self._supervises_rewritten(example),
        }

    def _reasons(self, example: Example) -> bool | None:
        if not isinstance(example, Conversation):
            return None
        turns = (message for message in example.messages if is_supervised(message))
        return self.recipe.reasoning != "drop" and any(map(reasoning_of, turns))

    def option_of_prompts(self, *, reasons: bool) -> str:
        """The option in prompts for answers with or without reasoning that prompts for unknown answers do not have."""
        recipe = self.recipe
        if recipe.plain_text:
            return ""
        try:
            template = chosen_template(self.tokenizer, recipe.chat_template)
            render = Renderer(self.tokenizer, template, options=recipe.template_options)
            return option_of_prompts(render, reasons=reasons)
        except UserError:  # the template needs more than a question
            return ""

    def _supervises_rewritten(self, example: Conversation) -> bool:
        """Whether `rewritten_history: split` would make other documents of the row."""
        if self.recipe.prompts or self.recipe.rewritten_history == "split":
            return False
        try:
            conversations = split_conversation(self.tokenizer, example.messages, **self._options(example))
        except UserError:
            return False
        return [len(messages) for messages in conversations] != [len(example.messages)]

    def _options(self, example: Conversation) -> ConversationOptions:
        recipe = self.recipe
        return {
            "tools": example.tools,
            "chat_template": recipe.chat_template,
            "template_options": {**recipe.template_options, **example.template_options},
            "plain_text": recipe.plain_text,
            "turns": recipe.turns,
            "reasoning": recipe.reasoning,
            "special_tokens_in_text": recipe.special_tokens_in_text,
        }
