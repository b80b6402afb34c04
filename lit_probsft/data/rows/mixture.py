"""Several sources as one, in shares: how many documents of each an epoch visits."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.rows.files import RowSequence
from lit_probsft.data.rows.formats import Conversation, Example
from lit_probsft.data.rows.row_source import as_source
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.streams import MixedStream, row_of_part
from lit_probsft.errors import UserError, errors_within

_NAME = re.compile(r"[\w.\-]+")


@dataclass(frozen=True)
class Part:
    """A source of a mixture.

    Args:
        source: its rows; a text stands for `Rows(path=text)`.
        weight: its share of an epoch's documents, relative to the other sources' weights.
        cap: most documents of it in an epoch; others in the next one. Not along with weights.
    """

    source: Source | str
    weight: float | None = None
    cap: int | None = None


@dataclass(frozen=True)
class Mixture(Source):
    """Several sources, told apart in metrics (`val/nll/NAME`).

    Without weights an epoch visits every document once, or as many of a source as its `cap` allows. With weights an
    epoch has as many documents as there are, shared out by weight: a source with more of them than it has documents
    repeats itself, another one takes turns. Evaluation visits every document once whatever the weights.

    Args:
        sources: by name (letters, digits, `_`, `-`, `.`): a `Part`, or a source alone, or a text that stands for
            `Rows(path=text)`.
        size: documents of an epoch in place of as many as there are; with weights only.
    """

    sources: dict[str, Part | Source | str]
    size: int | None = None

    def __post_init__(self) -> None:
        self._parts  # noqa: B018  what is wrong with it is told at once

    @functools.cached_property
    def _parts(self) -> dict[str, tuple[Source, Part]]:
        if not self.sources:
            raise UserError("sources", "expected at least one source by name, got none")
        parts: dict[str, tuple[Source, Part]] = {}
        for key, value in self.sources.items():
            name = str(key)  # YAML reads 2024 as a number
            if not _NAME.fullmatch(name):
                raise UserError("sources", f"expected names of letters, digits, `_`, `-` and `.`, got {name!r}")
            part = value if isinstance(value, Part) else Part(value)
            if part.weight is not None and not 0 < part.weight < math.inf:
                raise UserError(f"sources.{name}.weight", f"expected a number above 0, got {part.weight}")
            if part.cap is not None and part.cap < 1:
                raise UserError(f"sources.{name}.cap", f"expected at least 1 document, got {part.cap}")
            source = as_source(part.source)
            if source.parts:
                raise UserError(f"sources.{name}.source", "expected a source that is no mixture itself, got one")
            parts[name] = source, part
        weighted = [name for name, (_, part) in parts.items() if part.weight is not None]
        for name, (_, part) in parts.items():
            if weighted and part.weight is None:
                raise UserError(f"sources.{name}.weight", f"expected one, since {weighted[0]!r} has one, got none")
            if weighted and part.cap is not None:
                raise UserError(f"sources.{name}.cap", f"expected none along with weights, got {part.cap}")
        if self.size is not None and not weighted:
            raise UserError("size", f"expected it with weights only, got {self.size} and none")
        if self.size is not None and self.size < 1:
            raise UserError("size", f"expected at least 1 document, got {self.size}")
        return parts

    @property
    def parts(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self._parts)

    def load(self) -> Sequence[Mapping[str, Any]]:
        """All rows of the first source, then all of the second ..., each as `{"source": name, "row": row}`."""
        rows: Sequence[Mapping[str, Any]] = self._joined(lambda source: source.load())
        return rows

    def load_with_broken(self) -> RowSequence:
        """As `load`, with a `BrokenRow` in the place of each row that cannot be read."""
        rows: RowSequence = self._joined(lambda source: source.load_with_broken())
        return rows

    def _joined(self, load: Any) -> Any:
        loaded = {}
        for name, (source, _) in self._parts.items():
            with errors_within(f"sources.{name}"):
                loaded[name] = load(source)
            if not len(loaded[name]):
                raise UserError(f"sources.{name}", "expected at least one row, got an empty data set")
        return _Joined(loaded)

    @override
    def for_prediction(self) -> Mixture:
        sources: dict[str, Part | Source | str] = {
            name: replace(part, source=source.for_prediction()) for name, (source, part) in self._parts.items()
        }
        return replace(self, sources=sources)

    def stream(self, position: Any = None) -> MixedStream:
        """Rows of all sources, in the shares of their weights from the first row on; each source repeats itself."""
        for name, (_, part) in self._parts.items():
            if part.weight is None:
                raise UserError(
                    f"sources.{name}.weight", "expected one, since a stream does not know how many rows it has"
                )
        if self.size is not None:
            raise UserError("size", f"expected none for a stream, which has no epochs, got {self.size}")
        weights = {name: part.weight or 0.0 for name, (_, part) in self._parts.items()}
        return MixedStream({name: source.stream for name, (source, _) in self._parts.items()}, weights, position)

    def example(self, row: Mapping[str, Any]) -> Example:
        """What the row teaches, by its own source."""
        name = row["source"]
        with errors_within(f"sources.{name}"):
            return self._parts[name][0].example(row["row"])

    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """The row's messages."""
        example = self.example(row)
        if not isinstance(example, Conversation):
            raise UserError(
                f"sources.{row['source']}.format", f"expected rows with turns, got {type(example).__name__.lower()}"
            )
        return example.messages

    def describe(self) -> dict[str, Any]:
        """Every source's description, with its weight and cap."""
        return {
            "source": type(self).__name__,
            "sources": {
                name: {**source.describe(), "weight": part.weight, "cap": part.cap}
                for name, (source, part) in self._parts.items()
            },
            "size": self.size,
        }

    def commits(self) -> dict[str, str]:
        """Of the sources, by their names."""
        return {name: commit for name, (source, _) in self._parts.items() for commit in source.commits().values()}

    def identity(self) -> list[Any]:
        """Of every source, with its name and weight."""
        found: list[Any] = []
        for name, (source, part) in self._parts.items():
            with errors_within(f"sources.{name}"):
                found.append([name, source.identity(), part.weight])
        return found

    def fingerprint(self) -> str:
        """Of every source and its name; weights and caps change no document."""
        found = []
        for name, (source, _) in self._parts.items():
            with errors_within(f"sources.{name}"):
                found.append([name, source.fingerprint()])
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def quotas(self, counts: Mapping[str, int]) -> dict[str, int]:
        """How many documents of each source an epoch visits.

        Args:
            counts: how many each source has; those with none are left out of account.

        Raises:
            UserError: a weight too small for a single document.
        """
        there = {name: part for name, (_, part) in self._parts.items() if counts.get(name)}
        if all(part.weight is None for part in there.values()):
            return {name: min(counts[name], part.cap or counts[name]) for name, part in there.items()}
        total = sum(part.weight or 0 for part in there.values())
        size = self.size or sum(counts[name] for name in there)
        exact = {name: size * (part.weight or 0) / total for name, part in there.items()}
        quotas = {name: int(share) for name, share in exact.items()}
        by_rest = sorted(exact, key=lambda name: quotas[name] - exact[name])
        for name in by_rest[: size - sum(quotas.values())]:
            quotas[name] += 1
        for name, quota in quotas.items():
            if not quota:
                raise UserError(
                    f"sources.{name}.weight",
                    f"expected a share of at least one document, got {there[name].weight} of "
                    f"{total:g}, which is {exact[name]:.2g} of {size}",
                )
        return quotas


class _Joined(Sequence[Any]):
    """The rows of several sources, one source after the other."""

    def __init__(self, loaded: Mapping[str, RowSequence]) -> None:
        self._loaded = list(loaded.items())
        self._ends = list(accumulate(len(rows) for rows in loaded.values()))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        source, place = self.locate(index)
        name, rows = self._loaded[source]
        return row_of_part(name, rows[place])

    def locate(self, index: int) -> tuple[int, int]:
        """Which source row `index` is of, counted from 0, and which of its rows."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        source = bisect_right(self._ends, index)
        return source, index - (self._ends[source - 1] if source else 0)
