"""Where rows come from. A source is a frozen dataclass: it can be written in YAML, compared and described."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_probsft.data.conversation import (
    Message,
    conversation_from_columns,
    resolve_columns,
    validate_conversation,
    with_nested,
)
from lit_probsft.data.files import hash_files, local_paths, read_files
from lit_probsft.errors import UserError, near_matches


@dataclass(frozen=True)
class Source(ABC):
    """Rows, and how each becomes a conversation. Subclasses are decorated with `@dataclass(frozen=True)` too.

    Errors begin with the field that is at fault, so that a caller can put the name of its own argument in front.
    """

    @abstractmethod
    def load(self) -> Sequence[Mapping[str, Any]]:
        """All rows: anything with a length and an index, such as a list of dicts or a `datasets.Dataset`."""

    @abstractmethod
    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """`row` as messages, the last of them the assistant's.

        Raises:
            UserError: the row cannot be used; the message need not say which row it is.
        """

    def describe(self) -> dict[str, Any]:
        """The class and its fields as plain data, for the record of a run."""
        return {"source": type(self).__name__, **dataclasses.asdict(self)}

    def fingerprint(self) -> str:
        """A digest that changes whenever a conversation could: it decides whether cached tokens are still right.

        This default reads every row. Override it where the identity of the rows is known more cheaply.
        """
        digest = hashlib.sha256()
        for row in self.load():
            digest.update(json.dumps(self.conversation(row), ensure_ascii=False).encode("utf-8", "surrogatepass"))
            digest.update(b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Rows(Source):
    """Rows from the hub or from local files.

    Args:
        path: the name of a data set on the hub; a local .json, .jsonl, .parquet or .csv file, a glob, or a list of
            files; or a folder written by `datasets`' save_to_disk.
        name: the configuration of a hub data set.
        split: which split of a hub data set or a saved folder; `train` by default. Local files have one.
        prompt, response: columns (`extra_info.question` for a field of a nested one), or templates such as
        `{question}\\nThink step by step.` messages: the column that holds whole conversations, in place of the two
        above. system: a system text (or template) for every conversation that has none.
        limit: use the first so many rows only.
    """

    path: str | list[str]
    name: str | None = None
    split: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    system: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit: expected at least 1 row, got {self.limit}")

    def load(self) -> Sequence[Mapping[str, Any]]:
        """The rows; a missing file, a broken line or a missing column is refused here, before any row is used."""
        files = local_paths(self.path)
        rows = read_files(files, self.split) if files is not None else self._load_from_hub()
        if self.limit is not None and self.limit < len(rows):
            rows = rows.select(range(self.limit)) if hasattr(rows, "select") else rows[: self.limit]
        if len(rows):
            resolve_columns(
                list(with_nested(rows[0])), prompt=self.prompt, response=self.response, messages=self.messages
            )
        return rows

    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """The row's messages, by the columns and templates of this source."""
        turns = conversation_from_columns(
            row, prompt=self.prompt, response=self.response, messages=self.messages, system=self.system
        )
        for turn in turns:
            try:
                turn["content"].encode()
            except UnicodeEncodeError as error:
                whole = self.messages is not None or (self.prompt is None and "messages" in row)
                argument = (
                    "messages" if whole else {"user": "prompt", "assistant": "response"}.get(turn["role"], "system")
                )
                code = ord(turn["content"][error.start])
                raise UserError(
                    f"{argument}: expected Unicode text, got half of a surrogate pair (U+{code:04X}) at character "
                    f"{error.start}"
                ) from error
        return turns

    def fingerprint(self) -> str:
        """The bytes of local files, or what `datasets` calls the fingerprint of a hub data set, and every field."""
        files = local_paths(self.path)
        content = hash_files(files) if files is not None else str(getattr(self.load(), "_fingerprint", ""))
        # Where a file lies does not matter, what is in it does.
        fields = {key: value for key, value in self.describe().items() if key != "path"}
        return hashlib.sha256(json.dumps([content, fields], sort_keys=True).encode()).hexdigest()

    def _load_from_hub(self) -> Sequence[Mapping[str, Any]]:
        from datasets import get_dataset_split_names, load_dataset

        split = self.split or "train"
        try:
            rows: Sequence[Mapping[str, Any]] = load_dataset(self.path, self.name, split=split)
        except Exception as error:  # the hub's errors share no base class
            text = str(error)
            if "split" in text.lower():
                known = get_dataset_split_names(self.path, self.name)
                hint = near_matches(split, known)
                raise UserError(
                    f"split: no split {split!r} in {self.path!r}, which has {', '.join(known)}.{hint}"
                ) from error
            argument = "name" if "config" in text.lower() else "path"
            raise UserError(
                f"{argument}: {self.path!r} is no local file, and the hub could not give it: "
                f"{type(error).__name__}: {next(iter(text.splitlines()), '')}"
            ) from error
        return rows


@dataclass(frozen=True)
class FigletPuzzles(Source):
    """Words drawn in ASCII art, to be read back: a task that language models start out knowing nothing about.

    Puzzle i depends on `seed` and i alone. With the defaults, 0-39999 are the paper's training rows and 40000-44999
    (`start=40000, count=5000`) its test rows. Costs about 1.4 ms a row.

    Args:
        start, count: which puzzles.
        seed: of the generator.
        min_word_len, max_word_len: letters in a word.
        space_letters: put blanks between the letters.
    """

    start: int = 0
    count: int = 40000
    seed: int = 42
    min_word_len: int = 2
    max_word_len: int = 5
    space_letters: bool = True

    def __post_init__(self) -> None:
        for argument, value, least in (
            ("start", self.start, 0),
            ("count", self.count, 1),
            ("min_word_len", self.min_word_len, 1),
            ("max_word_len", self.max_word_len, self.min_word_len),
        ):
            if value < least:
                raise UserError(f"{argument}: expected at least {least}, got {value}")

    def load(self) -> Sequence[Mapping[str, Any]]:
        """The puzzles, each drawn when it is asked for."""
        import reasoning_gym

        options = {
            "min_word_len": self.min_word_len,
            "max_word_len": self.max_word_len,
            "space_letters": self.space_letters,
        }
        size = self.start + self.count
        return _Puzzles(reasoning_gym.create_dataset("figlet_font", seed=self.seed, size=size, **options), self.start)

    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """The drawing with its question, and the word."""
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        return validate_conversation(turns)

    def fingerprint(self) -> str:
        """The fields and the version of the generator, since those determine every row."""
        from importlib.metadata import version

        versions = [version("reasoning-gym"), version("pyfiglet")]
        return hashlib.sha256(json.dumps([versions, self.describe()], sort_keys=True).encode()).hexdigest()


class _Puzzles(Sequence[Mapping[str, Any]]):
    """Rows `start` onwards of a reasoning-gym data set, made on demand."""

    def __init__(self, dataset: Any, start: int) -> None:
        self._dataset, self._start = dataset, start

    def __len__(self) -> int:
        return len(self._dataset) - self._start

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._dataset[self._start + index]
        return {"prompt": row["question"], "response": row["answer"]}


def as_source(value: Source | str) -> Source:
    """A text stands for `Rows(path=text)`."""
    return Rows(path=value) if isinstance(value, str) else value
