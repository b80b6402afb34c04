"""Mixes several sources, by weight or with caps."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from typing_extensions import override

from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.rows.files import JoinedRows
from lit_probsft.data.rows.formats import Example
from lit_probsft.data.rows.readers import RowSequence
from lit_probsft.data.rows.row_source import as_source
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.streams import MixedStream, row_of_part
from lit_probsft.errors import UserError, errors_within

T = TypeVar("T")

_NAME = re.compile(r"[\w.\-]+")


@dataclass(frozen=True)
class Part:
    """A source of a mixture.

    Args:
        source: loads the rows; a string means `Rows(path=string)`.
        weight: its share of an epoch's documents, relative to the other sources' weights.
        cap: most of its documents in one epoch; the next epoch visits others. Cannot be combined with weights.
    """

    source: Source | str
    weight: float | None = None
    cap: int | None = None


@dataclass(frozen=True)
class Mixture(Source):
    """Several sources, reported separately in metrics (`val/nll/NAME`).

    Without weights, an epoch visits every document once, or at most `cap` documents of a source. With weights, an epoch
    has as many documents as all sources together, divided by weight: a source whose share exceeds its documents repeats
    some, a source with a smaller share visits different documents each epoch. Evaluation visits every document once,
    whatever the weights.

    Args:
        sources: by name (letters, digits, `_`, `-`, `.`): a `Part`, a source, or a string, which means
            `Rows(path=string)`.
        size: number of documents in an epoch; only with weights. By default as many as all sources have.
    """

    sources: dict[str, Part | Source | str]
    size: int | None = None

    def __post_init__(self) -> None:
        self._parts  # noqa: B018  refuse invalid parts at once

    @functools.cached_property
    def _parts(self) -> dict[str, tuple[Source, Part]]:
        if not self.sources:
            raise UserError("sources", "expected at least one named source, got none")
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
                raise UserError(f"sources.{name}.source", "expected a source other than a mixture, got a mixture")
            parts[name] = source, part
        weighted = [name for name, (_, part) in parts.items() if part.weight is not None]
        for name, (_, part) in parts.items():
            if weighted and part.weight is None:
                raise UserError(f"sources.{name}.weight", f"expected a weight, since {weighted[0]!r} has one, got none")
            if weighted and part.cap is not None:
                raise UserError(f"sources.{name}.cap", f"cannot be combined with weights, got {part.cap}")
        if self.size is not None and not weighted:
            raise UserError("size", f"needs weights, got {self.size} without any")
        if self.size is not None and self.size < 1:
            raise UserError("size", f"expected at least 1 document, got {self.size}")
        return parts

    @property
    @override
    def parts(self) -> tuple[str, ...]:
        return tuple(self._parts)

    @override
    def load(self) -> Sequence[Mapping[str, Any]]:
        """All rows of the first source, then of the second and so on, each as `{"source": name, "row": row}`."""
        rows: Sequence[Mapping[str, Any]] = self._concatenate(lambda source: source.load())
        return rows

    @override
    def load_with_broken(self) -> RowSequence:
        rows: RowSequence = self._concatenate(lambda source: source.load_with_broken())
        return rows

    def _concatenate(self, load: Callable[[Source], Sequence[Any]]) -> Any:
        def load_one(source: Source) -> Sequence[Any]:
            if not len(rows := load(source)):
                raise UserError("", "expected at least one row, got an empty data set")
            return rows

        return _Concatenated(self._of_each_source(load_one))

    def _of_each_source(self, call: Callable[[Source], T]) -> dict[str, T]:
        """Call a function with every source; its errors name the source."""
        results = {}
        for name, (source, _) in self._parts.items():
            with errors_within(f"sources.{name}"):
                results[name] = call(source)
        return results

    @override
    def for_prediction(self) -> Mixture:
        sources: dict[str, Part | Source | str] = {
            name: replace(part, source=source.for_prediction()) for name, (source, part) in self._parts.items()
        }
        return replace(self, sources=sources)

    @override
    def stream(self, position: Any = None) -> MixedStream:
        for name, (_, part) in self._parts.items():
            if part.weight is None:
                raise UserError(
                    f"sources.{name}.weight", "expected a weight, since a stream does not know its number of rows"
                )
        if self.size is not None:
            raise UserError("size", f"expected none with data.streaming, which has no epochs, got {self.size}")
        weights = {name: part.weight or 0.0 for name, (_, part) in self._parts.items()}
        return MixedStream({name: source.stream for name, (source, _) in self._parts.items()}, weights, position)

    @override
    def example(self, row: Mapping[str, Any]) -> Example:
        with errors_within(f"sources.{row['source']}"):
            return self._parts[row["source"]][0].example(row["row"])

    @override
    def unused(self, row: Mapping[str, Any]) -> list[str]:
        part, _ = self._parts[row["source"]]
        return [f"{row['source']}.{column}" for column in part.unused(row["row"])]

    @override
    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        with errors_within(f"sources.{row['source']}"):
            return self._parts[row["source"]][0].conversation(row["row"])

    @override
    def describe(self) -> dict[str, Any]:
        return {
            "source": type(self).__name__,
            "sources": {
                name: {**source.describe(), "weight": part.weight, "cap": part.cap}
                for name, (source, part) in self._parts.items()
            },
            "size": self.size,
        }

    @override
    def commits(self) -> dict[str, str]:
        return {name: commit for name, (source, _) in self._parts.items() for commit in source.commits().values()}

    @override
    def identity(self) -> list[Any]:
        found = self._of_each_source(lambda source: source.identity())
        return [[name, found[name], part.weight] for name, (_, part) in self._parts.items()]

    @override
    def fingerprint(self) -> str:
        found = self._of_each_source(lambda source: source.fingerprint())  # weights and caps change no document
        return hashlib.sha256(json.dumps([[name, digest] for name, digest in found.items()]).encode()).hexdigest()

    @override
    def quotas(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Number of documents of each source in one epoch of training.

        Args:
            counts: number of documents that each source has; empty sources are ignored.

        Raises:
            UserError: a weight is too small for a single document.
        """
        parts = {name: part for name, (_, part) in self._parts.items() if counts.get(name)}
        if all(part.weight is None for part in parts.values()):
            return {name: min(counts[name], part.cap or counts[name]) for name, part in parts.items()}
        total = sum(part.weight or 0 for part in parts.values())
        size = self.size or sum(counts[name] for name in parts)
        exact = {name: size * (part.weight or 0) / total for name, part in parts.items()}
        quotas = {name: int(share) for name, share in exact.items()}
        by_remainder = sorted(exact, key=lambda name: quotas[name] - exact[name])
        for name in by_remainder[: size - sum(quotas.values())]:
            quotas[name] += 1
        for name, quota in quotas.items():
            if not quota:
                raise UserError(
                    f"sources.{name}.weight",
                    f"expected a share of at least one document, got {parts[name].weight} of "
                    f"{total:g}, which is {exact[name]:.2g} of {size}",
                )
        return quotas


class _Concatenated(JoinedRows):
    """The rows of several sources in order."""

    def __init__(self, loaded: Mapping[str, RowSequence]) -> None:
        super().__init__(list(loaded.values()))
        self._names = list(loaded)

    @override
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return super().__getitem__(index)
        return row_of_part(self._names[self.locate(index)[0]], super().__getitem__(index))

    def locate(self, index: int) -> tuple[int, int]:
        """Index of the source that row `index` belongs to, and the row's index in it."""
        return self.find(index)
