"""Rows from local files or the Hugging Face hub, read by their columns."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lit_probsft.data.rows.arrow_rows import ArrowRows
from lit_probsft.data.rows.columns import with_nested
from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.rows.files import FilesReader, file_sizes, hash_files, local_paths, read_files, refuse_broken
from lit_probsft.data.rows.formats import FORMATS, Columns, Conversation, Example, unused_columns
from lit_probsft.data.rows.hub import HubReader, load_from_hub, stream_from_hub
from lit_probsft.data.rows.readers import Reader, RowSequence
from lit_probsft.data.rows.row_function import call_row_function, import_row_function
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.streams import RowStream
from lit_probsft.errors import UserError, near_matches
from lit_probsft.storage.hub import dataset_commit


@dataclass(frozen=True)
class Rows(Source):
    """Rows from the hub or from local files.

    Args:
        path: the name of a data set on the hub; a local .json, .jsonl, .csv, .tsv or .parquet file, also compressed
            (.jsonl.gz, .csv.zst), a glob, or a list of files; or a folder written by `datasets`' save_to_disk.
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
        system: a system text (or template) for every conversation that has no system turn. By default the column
            `system`, where a row has one; an empty text means none.
        weight: the column with a row's weight, from 0 to 1e9. It multiplies the losses of the row's tokens in the sum
            of a step; the number that the sum is divided by stays the same.
        row_function: for any other format, a function by its import path (`my_rows.pubmedqa`): it gets a row with all
            columns (images and the like as they are stored) and returns one in a format above.
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
            self._columns.check(list(with_nested(rows[0], self._used(list(rows[0])))))
        return rows

    @override
    def load_with_broken(self) -> RowSequence:
        files = self._check_and_find_files()
        rows = read_files(files, self.split, self._used) if files is not None else self._load_from_hub()
        return rows if self.limit is None else rows[: self.limit]

    @override
    def reader(self, position: Any = None) -> Reader:
        files = self._check_and_find_files()
        if files is not None:
            return FilesReader(files, self.split, position, self._used)
        return HubReader(stream_from_hub(self.path, self.name, self.split, self.revision), position)

    @override
    def stream(self, position: Any = None) -> RowStream:
        return RowStream(self.reader, position, self.limit)

    @override
    def example(self, row: Mapping[str, Any]) -> Example:
        if self.row_function is not None:
            row = call_row_function(self.row_function, dict(row))
        return self._columns.example(row, null_fill=self._from_arrow)

    @override
    def unused(self, row: Mapping[str, Any]) -> Sequence[str]:
        # A row function reads what it likes.
        return () if self.row_function is not None else unused_columns(self._columns, tuple(row))

    @override
    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        example = self.example(row)
        if not isinstance(example, Conversation):
            raise UserError("format", f"expected rows with turns, got {type(example).__name__.lower()}")
        return example.messages

    @override
    def for_prediction(self) -> Rows:
        rows = copy.copy(self)  # keeps the fields of a subclass
        rows.__dict__.pop("_columns", None)
        object.__setattr__(rows, "_require_response", False)
        return rows

    @override
    def fingerprint(self) -> str:
        if self.row_function is not None:
            # The function's code is in files of its own, so digest what it returns.
            return super().fingerprint()
        files = local_paths(self.path)
        content = hash_files(files) if files is not None else self._load_from_hub().fingerprint
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

    @functools.cached_property
    def _from_arrow(self) -> bool:
        """Whether Arrow holds the rows, or some of them: parquet files, saved folders and the hub."""
        try:
            files = local_paths(self.path)
        except UserError:  # there is no such file: the row was made by hand
            return False
        return files is None or any(file.is_dir() or file.suffix.lower() == ".parquet" for file in files)

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

    def _load_from_hub(self) -> ArrowRows:
        return load_from_hub(self.path, self.name, self.split, self.revision)

    def _used(self, columns: Sequence[str]) -> Sequence[str]:
        """The columns that are used: all of them if a function gets the rows."""
        return columns if self.row_function is not None else self._columns.used(columns)

    @functools.cached_property
    def _columns(self) -> Columns:
        named = self.format, self.prompt, self.response, self.messages, self.text, self.system, self.weight
        return Columns(*named, require_response=self._require_response)


def as_source(value: Source | str) -> Source:
    """Return `value` itself, or `Rows(path=value)` for a string."""
    return Rows(path=value) if isinstance(value, str) else value
