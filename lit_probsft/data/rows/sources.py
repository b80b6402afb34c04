"""Where rows come from. A source is a frozen dataclass: it can be written in YAML, compared and described."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from lit_probsft.data.rows.conversation import Message, validate_conversation, with_nested
from lit_probsft.data.rows.files import BrokenRow, RowSequence, file_sizes, hash_files, local_paths, read_files
from lit_probsft.data.rows.formats import FORMATS, Columns, Conversation, Example
from lit_probsft.data.rows.streams import Files, Hub, Indexed, MixedStream, Reader, RowStream
from lit_probsft.errors import UserError, first_line, near_matches
from lit_probsft.storage.hub import dataset_commit


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

    def load_with_broken(self) -> RowSequence:
        """As `load`, with a `BrokenRow` in the place of each row that cannot be read, where that can be told."""
        return self.load()

    def example(self, row: Mapping[str, Any]) -> Example:
        """What `row` teaches: its conversation, in a source that gives nothing else.

        Raises:
            UserError: as `conversation`.
        """
        return Conversation(self.conversation(row))

    def asking(self) -> Source:
        """The same rows for `predict`, where one may be a question without an answer; this default wants answers."""
        return self

    def reader(self, place: Any = None) -> Reader:
        """The rows one by one from a `place` on that another reader was at; this default loads them all.

        Raises:
            UserError: the source cannot be read.
        """
        return Indexed(self.load_with_broken(), place)

    def stream(self, place: Any = None) -> RowStream | MixedStream:
        """The rows without an end, from a `place` on that another stream was at.

        Raises:
            UserError: the source cannot be read.
        """
        return RowStream(self.reader, place)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the sources it is made of, to be told apart in metrics; empty when it is one."""
        return ()

    def quotas(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        """How many documents of each part an epoch of training visits, of so many that there are: all of them once.

        Raises:
            UserError: the source asks for what these documents do not allow.
        """
        return counts

    def describe(self) -> dict[str, Any]:
        """The class and its fields as plain data, for the record of a run."""
        return {"source": type(self).__name__, **dataclasses.asdict(self)}

    def commits(self) -> Mapping[str, str]:
        """The commit of each part's data on the hub, by the part's name, where it has several; those that are known."""
        return {}

    def identity(self) -> Any:
        """What tells these rows from others as far as it is known without reading them: plain data, for streams."""
        return self.describe()

    def fingerprint(self) -> str:
        """A digest that changes whenever a conversation could: it decides whether cached tokens are still right.

        This default reads every row. Override it where the identity of the rows is known more cheaply.
        """
        digest = hashlib.sha256()
        for row in self.load_with_broken():
            try:
                taught = row.message if isinstance(row, BrokenRow) else dataclasses.asdict(self.example(row))
            except UserError as error:  # told with its place when the row is used
                taught = str(error)
            text = json.dumps(taught, ensure_ascii=False, default=repr)
            digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Rows(Source):
    """Rows from the hub or from local files.

    Args:
        path: the name of a data set on the hub; a local .json, .jsonl, .parquet or .csv file, a glob, or a list of
            files; or a folder written by `datasets`' save_to_disk.
        name: the configuration of a hub data set.
        split: which split of a hub data set or a saved folder; `train` by default. Local files have one.
        format: `messages` (OpenAI's turns, also with tool calls), `sharegpt` (a column `conversations`), `prompt` (with
            `response`), `alpaca` (`instruction`, `input`, `output`), `tokens` (`input_ids`, `labels`) or `text`;
            recognized from the columns, in this order, where neither it nor a column is named.
        prompt: a column (`extra_info.question` for a field of a nested one), or a template such as
            `{question}\\nThink step by step.`
        response: the same.
        messages: the column that holds whole conversations.
        text: the column that holds texts without turns, which are learnt whole.
        system: a system text (or template) for every conversation that has none.
        weight: the column that holds a row's weight, at least 0: its tokens' losses are multiplied by it in the sum of
            a step, while the number that the sum is divided by stays.
        row_function: for any other format, a function by its import path (`my_rows.pubmedqa`): it gets a row and
            returns one in a format above.
        limit: use the first so many rows only.
        revision: branch, tag or commit of a hub data set. No code of a data set ever runs.
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

    _answered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError("limit", f"expected at least 1 row, got {self.limit}")
        if self.format is not None and self.format not in FORMATS:
            hint = near_matches(self.format, FORMATS)
            raise UserError("format", f"expected one of {', '.join(FORMATS)}, got {self.format!r}.{hint}")

    def load(self) -> Sequence[Mapping[str, Any]]:
        """The rows; a missing file, a broken line or a missing column is refused here, before any row is used."""
        rows: list[Any] | Any = self.load_with_broken()
        if isinstance(rows, list):
            for row in rows:
                if isinstance(row, BrokenRow):
                    raise row.error
        if len(rows) and self.row_function is None:
            self._columns.check(list(with_nested(rows[0])))
        checked: Sequence[Mapping[str, Any]] = rows
        return checked

    def load_with_broken(self) -> RowSequence:
        """The rows; a missing file is refused, a broken line leaves a `BrokenRow`."""
        _ = self._columns  # named columns that contradict each other need no file to be refused
        files = self._files()
        rows: Any = read_files(files, self.split) if files is not None else self._load_from_hub()
        if self.limit is not None and self.limit < len(rows):
            rows = rows.select(range(self.limit)) if hasattr(rows, "select") else rows[: self.limit]
        if self.row_function is not None:
            imported(self.row_function)
        loaded: RowSequence = rows
        return loaded

    def example(self, row: Mapping[str, Any]) -> Example:
        """What the row teaches, by its format."""
        return self._columns.example(row if self.row_function is None else self._made(row))

    def asking(self) -> Rows:
        """The same rows, which need no answer."""
        rows = copy.copy(self)  # of a subclass too, whatever its fields
        object.__setattr__(rows, "_answered", False)
        return rows

    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """The row's messages."""
        example = self.example(row)
        if not isinstance(example, Conversation):
            raise UserError("format", f"expected rows with turns, got {type(example).__name__.lower()}")
        return example.messages

    def fingerprint(self) -> str:
        """The bytes of local files, or what `datasets` calls the fingerprint of a hub data set, and every field.

        A function's code lies in files of its own, so what it makes of every row is read instead.
        """
        if self.row_function is not None:
            return super().fingerprint()
        files = local_paths(self.path)
        content = hash_files(files) if files is not None else str(getattr(self.load(), "_fingerprint", ""))
        # Where a file lies does not matter, what is in it does.
        fields = {key: value for key, value in self.describe().items() if key != "path"}
        return hashlib.sha256(json.dumps([content, fields], sort_keys=True).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Every field, and names and sizes of local files; where they lie does not matter."""
        files = local_paths(self.path)
        return self.describe() if files is None else {**self.describe(), "path": file_sizes(files)}

    def commits(self) -> Mapping[str, str]:
        """Of a hub data set, as the hub tells it."""
        if local_paths(self.path) is not None:
            return {}
        commit = dataset_commit(str(self.path), self.revision)
        return {} if commit is None else {"": commit}

    def _files(self) -> Any:
        """Local files, or None for a hub data set."""
        files = local_paths(self.path)
        if files is not None and self.revision is not None:
            raise UserError("revision", f"expected none with local files, which have no history, got {self.revision!r}")
        return files

    @property
    def _columns(self) -> Columns:
        named = self.format, self.prompt, self.response, self.messages, self.text, self.system, self.weight
        return Columns(*named, answered=self._answered)

    def _made(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the row function makes of `row`."""
        assert self.row_function is not None
        function = imported(self.row_function)
        try:
            made = function(row)
        except UserError as error:
            raise UserError("row_function", f"{error}") from error
        except Exception as error:  # the user's code
            raise UserError("row_function", f"{self.row_function} raised {type(error).__name__}: {error}") from error
        if not isinstance(made, Mapping):
            raise UserError(
                "row_function",
                f"expected {self.row_function} to return a mapping such as {{prompt, response}}, got "
                f"{type(made).__name__}",
            )
        return made

    def reader(self, place: Any = None) -> Reader:
        """The rows one by one: files are read as far as they are used, the hub's data are not downloaded as a whole."""
        _ = self._columns
        if self.row_function is not None:
            imported(self.row_function)
        files = self._files()
        return Hub(self._load_from_hub(streaming=True), place) if files is None else Files(files, self.split, place)

    def stream(self, place: Any = None) -> RowStream:
        """The rows without an end; a pass has at most `limit`."""
        return RowStream(self.reader, place, self.limit)

    def _load_from_hub(self, **options: Any) -> Sequence[Mapping[str, Any]]:
        from datasets import get_dataset_split_names, load_dataset

        split = self.split or "train"
        # The commit that is recorded, whatever is pushed meanwhile.
        revision = dataset_commit(str(self.path), self.revision) or self.revision
        try:
            rows: Sequence[Mapping[str, Any]] = load_dataset(
                self.path, self.name, split=split, revision=revision, **options
            )
        except Exception as error:  # the hub's errors share no base class
            text = str(error)
            if "scripts are no longer supported" in text:
                raise UserError(
                    "path",
                    f"expected data in files, {self.path!r} is made by code of its own, which is never run; the "
                    "hub often has such a set converted, at `revision: refs/convert/parquet`",
                ) from error
            if "split" in text.lower():
                known = get_dataset_split_names(self.path, self.name, revision=revision)
                hint = near_matches(split, known)
                raise UserError(
                    "split", f"no split {split!r} in {self.path!r}, which has {', '.join(known)}.{hint}"
                ) from error
            argument = "name" if "config" in text.lower() else "path"
            raise UserError(
                argument,
                f"expected a local file or a data set that the hub can give, got {self.path!r}: {first_line(error)}",
            ) from error
        return rows


@dataclass(frozen=True)
class FigletPuzzles(Source):
    """Words drawn in ASCII art, to be read back: a task that language models start out knowing nothing about.

    Puzzle i depends on `seed` and i alone. With the defaults, 0-39999 are the paper's training rows and 40000-44999
    (`start=40000, count=5000`) its test rows. Costs about 1.4 ms a row.

    Args:
        start: the first puzzle.
        count: how many there are.
        seed: of the generator.
        min_word_len: letters in a word, at least.
        max_word_len: letters in a word, at most.
        space_letters: put blanks between the letters.
        system: a system text for every puzzle.
    """

    start: int = 0
    count: int = 40000
    seed: int = 42
    min_word_len: int = 2
    max_word_len: int = 5
    space_letters: bool = True
    system: str | None = None

    def __post_init__(self) -> None:
        for argument, value, least in (
            ("start", self.start, 0),
            ("count", self.count, 1),
            ("min_word_len", self.min_word_len, 1),
            ("max_word_len", self.max_word_len, self.min_word_len),
        ):
            if value < least:
                raise UserError(argument, f"expected at least {least}, got {value}")

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
        """The system text if there is one, the drawing with its question, and the word."""
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        if self.system is not None:
            turns.insert(0, {"role": "system", "content": self.system})
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


def imported(path: str) -> Callable[[Mapping[str, Any]], Any]:
    """The function that an import path names.

    Raises:
        UserError: there is none.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError("row_function", f"expected an import path such as my_rows.pubmedqa, got {path!r}")
    try:
        module = import_module(module_name)
    except Exception as error:  # the user's module may do anything
        raise UserError(
            "row_function", f"cannot import {module_name!r}, which {path!r} names: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        hint = near_matches(name, [key for key, value in vars(module).items() if callable(value)])
        raise UserError("row_function", f"no function {name!r} in {module_name!r}.{hint}")
    checked: Callable[[Mapping[str, Any]], Any] = function
    return checked
