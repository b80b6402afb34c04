"""The tokenizer of a run, and the rows of its splits as tokens."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lit_probsft.data.batches.cache import cached_store, cached_tokenizer, check_cache
from lit_probsft.data.batches.prepare import unloaded
from lit_probsft.data.batches.row_tokenizer import Outcome, Recipe, RowTokenizer
from lit_probsft.data.batches.store import TokenStore
from lit_probsft.data.batches.stream_checks import first_rows
from lit_probsft.data.rows.formats import Conversation
from lit_probsft.data.stages import Splits
from lit_probsft.data.tokens.added_tokens import check_added_tokens, with_added_tokens
from lit_probsft.data.tokens.rendering import plain_template
from lit_probsft.data.tokens.template_defaults import check_template_reads, with_defaults
from lit_probsft.data.tokens.tokenization import end_of_turn_id
from lit_probsft.data.tokens.tokenizers import TokenizerSource, as_tokenizer_source, checked_tokenizer
from lit_probsft.errors import UserError, errors_within


class TokenizedSplits:
    """Tokenizes the splits of a run on first use, or loads their tokens from the cache.

    Args:
        splits: the rows.
        tokenizer: a `TokenizerSource`, text for `PretrainedTokenizer(text)`, or a loaded tokenizer.
        recipe: how rows are tokenized.
        cache_dir: folder for tokens and trained tokenizers; by default LIT_PROBSFT_CACHE from the environment, or else
            ~/.cache/lit_probsft.
        add_tokens: texts that become one token each.
        add_special_tokens: the same for control tokens.
        remove_duplicates: drop training documents that are also in the validation set.
        num_proc: processes that tokenize.

    Attributes:
        stores: the documents of each split that is tokenized.

    Raises:
        UserError: the tokens to add are no tokens, or the tokenizer cannot be loaded.
    """

    def __init__(
        self,
        splits: Splits,
        tokenizer: Any,
        recipe: Recipe,
        cache_dir: str | None,
        *,
        add_tokens: Sequence[str] | None,
        add_special_tokens: Sequence[str] | None,
        remove_duplicates: bool,
        num_proc: int | None,
    ) -> None:
        check_added_tokens(add_tokens or (), add_special_tokens or ())
        self.splits, self.recipe = splits, recipe
        self.cache = Path(cache_dir or os.environ.get("LIT_PROBSFT_CACHE") or "~/.cache/lit_probsft").expanduser()
        self.tokenizer_source = as_tokenizer_source(tokenizer)
        self.stores: dict[str, TokenStore] = {}
        self._add_tokens, self._add_special_tokens = tuple(add_tokens or ()), tuple(add_special_tokens or ())
        self._remove_duplicates, self._num_proc = remove_duplicates, num_proc
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The loaded tokenizer. It has the recipe's chat template and options, so that all are saved together."""
        if self._tokenizer is None:
            try:
                tokenizer = with_added_tokens(self._load_tokenizer(), self._add_tokens, self._add_special_tokens)
                if self.recipe.chat_template is not None:
                    tokenizer.chat_template = self.recipe.chat_template
                elif self.recipe.plain_text and tokenizer.eos_token is not None:
                    tokenizer.chat_template = plain_template(tokenizer)
                if self.recipe.template_options:
                    tokenizer = self._with_template_options(tokenizer)
            except UserError as error:
                raise error if error.argument.startswith("data.") else error.within("data.tokenizer") from error
            self._tokenizer = tokenizer
        return self._tokenizer

    @property
    def end_of_turn_id(self) -> int | None:
        """The token that ends an answer; None if answers have no end."""
        return end_of_turn_id(self.tokenizer, plain_text=self.recipe.plain_text)

    def store(self, name: str, *, progress: bool, contents: bool = True) -> TokenStore:
        """Returns the documents of a split; those of `predict` are whole prompts.

        With `contents`, every byte of a cached split is checked, otherwise only the sizes of its files.
        """
        if name not in self.stores:
            check_cache(self.cache)  # before the tokenizer, which takes longer
            removes = name == "train" and self._remove_duplicates and "validation" in self.splits
            self.stores[name] = cached_store(
                self.cache,
                self.splits[name],
                self.tokenizer,
                replace(self.recipe, prompts=True, max_length=None) if name == "predict" else self.recipe,
                without=self.store("validation", progress=progress, contents=contents) if removes else None,
                num_proc=self._num_proc,
                progress=progress,
                contents=contents,
            )
        return self.stores[name]

    def row_tokenizer(self, name: str) -> RowTokenizer:
        """Returns a tokenizer of a split's rows that reads them itself, possibly in another process."""
        return RowTokenizer(unloaded(self.splits[name].loaded), self.tokenizer, self.recipe)

    def inspect(
        self, name: str, most: int, *, streaming: bool
    ) -> tuple[int | None, list[int], Iterator[list[Outcome]]]:
        """Tokenizes rows of a split without the cache, and skips bad rows with a reason whatever `on_bad_row` is.

        Also looks for turns that are supervised as the template rewrites them.

        Args:
            name: of the split.
            most: number of rows, evenly spread over the split; the first rows of a stream.
            streaming: the split is a stream.

        Returns:
            The number of rows in the split (None for a stream), the indices of the inspected rows, and the outcomes of
            each.

        Raises:
            UserError: the source cannot be read at all, or the template renders no row.
        """
        recipe = replace(self.recipe, on_bad_row="skip", prompts=name == "predict")
        split = replace(self.splits[name], loaded=unloaded(self.splits[name].loaded, skips=True))
        row_tokenizer = RowTokenizer(split.loaded, self.tokenizer, recipe, inspects=True)
        if streaming:
            items = first_rows(split.loaded, most)
            outcomes = (row_tokenizer.tokenize_item(item, row) for row, item in enumerate(items))
            return None, list(range(len(items))), outcomes
        indices = split.indices()
        step = max(len(indices) / most, 1.0)
        chosen = [indices[int(number * step)] for number in range(min(len(indices), most))]
        return len(indices), chosen, map(row_tokenizer.tokenize_row, chosen)

    def prediction_row(self, row: int) -> dict[str, Any]:
        """Describes row `row` of the predict split; see `InstructionDataModule.prediction_row`."""
        loaded = self.splits["predict"].loaded
        item = loaded.item(row)
        example = loaded.example(item)
        assert isinstance(example, Conversation)
        assert isinstance(item.row, Mapping)
        columns = item.row["row"] if loaded.source.parts else item.row  # a mixture wraps its rows
        prompt = next(turn["content"] for turn in reversed(example.messages) if turn["role"] == "user")
        last = example.messages[-1]
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in last.get("tool_calls", [])]
        answer = "\n".join(filter(None, [last["content"], *calls])) if last["role"] == "assistant" else None
        source, index = loaded.locate(row)
        origin = {"source": loaded.source.parts[source]} if loaded.source.parts else {}
        task = {"task_id": columns["task_id"]} if "task_id" in columns else {}
        return {**origin, "index": index, **task, "prompt": prompt, "reference": answer}

    def describe(self) -> dict[str, Any]:
        """Returns sources, tokenizer and recipe as plain data, for the record of a run."""
        source = self.tokenizer_source
        known = isinstance(source, TokenizerSource)
        return {
            **self.splits.describe(),
            "tokenizer": source.describe() if known else {"tokenizer": type(source).__name__},
            "added_tokens": [*self._add_tokens, *self._add_special_tokens],
            "recipe": asdict(self.recipe),
        }

    def commits(self) -> dict[str, str]:
        """Returns the hub commits of the tokenizer and of the sources, by argument."""
        commit = getattr(self.tokenizer_source, "commit", None)
        return {**({} if commit is None else {"data.tokenizer": commit}), **self.splits.commits()}

    def _with_template_options(self, tokenizer: Any) -> Any:
        """The tokenizer with the recipe's options as its template's defaults. The given one may be the caller's."""
        with errors_within("data"):
            check_template_reads(tokenizer, self.recipe.template_options)
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = with_defaults(tokenizer.chat_template, self.recipe.template_options)
        return tokenizer

    def _load_tokenizer(self) -> Any:
        source = self.tokenizer_source
        if source is None:
            problem = "expected a tokenizer, such as ByteTokenizer or the name of a model; got none"
            raise UserError("data.tokenizer", problem)
        if not isinstance(source, TokenizerSource):
            return checked_tokenizer(source)
        if source.learns:
            check_cache(self.cache)
            return cached_tokenizer(self.cache, source, self.splits["train"])
        return source.load(lambda: self.splits["train"].texts())
