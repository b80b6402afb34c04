"""Rows from local files or the Hugging Face hub, read by their columns."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lit_probsft.data.rows.columns import with_nested
from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.rows.files import RowSequence, file_sizes, hash_files, local_paths, read_files, refuse_broken
from lit_probsft.data.rows.formats import FORMATS, Columns, Conversation, Example
from lit_probsft.data.rows.hub import HubReader, load_from_hub
from lit_probsft.data.rows.readers import FilesReader, Reader
from lit_probsft.data.rows.row_function import call_row_function, import_row_function
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.streams import RowStream
from lit_probsft.errors import UserError, near_matches
from lit_probsft.storage.hub import dataset_commit


@dataclass(frozen=True)
class Rows(Source):
    """Rows from the hub or from local files.

    Args:
        path: the name of a data set on the hub; a local .json, .jsonl, .parquet or .csv file, a glob, or a list of
            files; or a folder written by `datasets`' save_to_disk.
        name: the configuration of a hub data set.
        split: the split of a hub data set or a saved folder; `train` by default. Local files have one split.
        format: `messages` (OpenAI's turns, also with tool calls), `sharegpt` (a column `conversations`), `prompt` (with
            `response`), `alpaca` (`instruction`, `input`, `output`), `tokens` (`input_ids`, `labels`) or `text`. By
            default recognized from the columns, in this order, unless a column is named.
        prompt: a column (`extra_info.question` for a field of a nested one), or a template such as
            `{question}\\nThink step by step.`
        response: a column or a template, like `prompt`.
        messages: the column with whole conversations.
        text: the column with texts without turns, which are supervised whole.
        system: a system text (or template) for every conversation that has none.
        weight: the column with a row's weight, at least 0. It multiplies the losses of the row's tokens in the sum of a
            step; the number that the sum is divided by stays the same.
        row_function: for any other format, a function by its import path (`my_rows.pubmedqa`): it gets a row and
            returns one in a format above.
        limit: use only this many rows, the first ones.
        revision: branch, tag or commit of a hub data set. Code in a data set is never executed.
    """

    path: str | list[str]
    name: str | None = None
    split: str | None = None
    format: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    system: str | None = None
    weight: str | None = None
    row_function: str | None = None
    limit: int | None = None
    revision: str | None = None

    _require_response: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError("limit", f"expected at least 1 row, got {self.limit}")
        if self.format is not None and self.format not in FORMATS:
            hint = near_matches(self.format, FORMATS)
            raise UserError("format", f"expected one of {', '.join(FORMATS)}, got {self.format!r}.{hint}")

    @override
    def load(self) -> Sequence[Mapping[str, Any]]:
        rows = refuse_broken(self.load_with_broken())
        if len(rows) and self.row_function is None:
            self._columns.check(list(with_nested(rows[0])))
        return rows

    @override
    def load_with_broken(self) -> RowSequence:
        files = self._check_and_find_files()
        rows: Any = read_files(files, self.split) if files is not None else self._load_from_hub()
        if self.limit is not None and self.limit < len(rows):
            rows = rows.select(range(self.limit)) if hasattr(rows, "select") else rows[: self.limit]
        loaded: RowSequence = rows
        return loaded

    @override
    def reader(self, position: Any = None) -> Reader:
        files = self._check_and_find_files()
        if files is not None:
            return FilesReader(files, self.split, position)
        return HubReader(self._load_from_hub(streaming=True), position)

    @override
    def stream(self, position: Any = None) -> RowStream:
        return RowStream(self.reader, position, self.limit)

    @override
    def example(self, row: Mapping[str, Any]) -> Example:
        return self._columns.example(row if self.row_function is None else call_row_function(self.row_function, row))

    @override
    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        example = self.example(row)
        if not isinstance(example, Conversation):
            raise UserError("format", f"expected rows with turns, got {type(example).__name__.lower()}")
        return example.messages

    @override
    def for_prediction(self) -> Rows:
        rows = copy.copy(self)  # keeps the fields of a subclass
        object.__setattr__(rows, "_require_response", False)
        return rows

    @override
    def fingerprint(self) -> str:
        if self.row_function is not None:
            # The function's code is in files of its own, so digest what it returns.
            return super().fingerprint()
        files = local_paths(self.path)
        content = hash_files(files) if files is not None else str(getattr(self.load(), "_fingerprint", ""))
        # Only the content of a file matters, not its path.
        fields = {key: value for key, value in self.describe().items() if key != "path"}
        return hashlib.sha256(json.dumps([content, fields], sort_keys=True).encode()).hexdigest()

    @override
    def identity(self) -> dict[str, Any]:
        files = local_paths(self.path)
        return self.describe() if files is None else {**self.describe(), "path": file_sizes(files)}

    @override
    def commits(self) -> Mapping[str, str]:
        if local_paths(self.path) is not None:
            return {}
        commit = dataset_commit(str(self.path), self.revision)
        return {} if commit is None else {"": commit}

    def _check_and_find_files(self) -> list[Path] | None:
        """Local files, or None for a hub data set. Refuses options that contradict each other before opening any."""
        _ = self._columns
        if self.row_function is not None:
            import_row_function(self.row_function)
        files = local_paths(self.path)
        if files is not None and self.revision is not None:
            raise UserError("revision", f"expected none with local files, which have no history, got {self.revision!r}")
        if files is not None and self.split not in (None, "train") and not any(file.is_dir() for file in files):
            raise UserError("split", f"expected none with local files, which have one split, got {self.split!r}")
        return files

    def _load_from_hub(self, **options: Any) -> Sequence[Mapping[str, Any]]:
        return load_from_hub(self.path, self.name, self.split, self.revision, **options)

    @property
    def _columns(self) -> Columns:
        named = self.format, self.prompt, self.response, self.messages, self.text, self.system, self.weight
        return Columns(*named, require_response=self._require_response)


def as_source(value: Source | str) -> Source:
    """Return `value` itself, or `Rows(path=value)` for a string."""
    return Rows(path=value) if isinstance(value, str) else value
