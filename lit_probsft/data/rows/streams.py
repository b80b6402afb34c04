"""Endless streams of rows: a source repeated, or several sources mixed by weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lit_probsft.data.rows.readers import BrokenRow, LazyRow, Reader, Row
from lit_probsft.errors import UserError, errors_within


class StreamedRow(NamedTuple):
    """A row of a stream.

    Attributes:
        row: loads it when called.
        source: index of the mixture's part it belongs to; 0 for a single source.
        row_index: its index within that part.
        passes: number of complete passes over that part before it.
    """

    row: LazyRow
    source: int
    row_index: int
    passes: int


class RowStream:
    """Repeats a source endlessly.

    Args:
        open_at: opens a reader at a position, or at the first row for None.
        position: the `position` of an earlier stream, to continue there.
        limit: most rows of a pass.

    Attributes:
        passes: number of complete passes over the source.
    """

    def __init__(self, open_at: Callable[[Any], Reader], position: Any = None, limit: int | None = None) -> None:
        self._open_at, self._limit = open_at, limit
        start: dict[str, Any] = {"passes": 0, "row": 0, "at": None} if position is None else position
        self.passes: int = start["passes"]
        self._row: int = start["row"]
        self._reader = open_at(start["at"])

    def next(self) -> StreamedRow:
        """Return the next row.

        Raises:
            UserError: the source is empty, or cannot be read any further.
        """
        while True:
            row = None if self._row == self._limit else self._reader.next()
            if row is not None:
                self._row += 1
                return StreamedRow(row, 0, self._row - 1, self.passes)
            if not self._row:
                raise UserError("path", "expected at least one row, got an empty data set")
            self.passes, self._row, self._reader = self.passes + 1, 0, self._open_at(None)

    @property
    def position(self) -> dict[str, Any]:
        """Where the next row is: plain data, for a checkpoint."""
        return {"passes": self.passes, "row": self._row, "at": self._reader.position}


class MixedStream:
    """Mixes several streams by weight. The shares hold from the first row on.

    Args:
        streams: for each part, by name, opens its stream at a position.
        weights: weight of each part, above 0.
        position: the `position` of an earlier stream, to continue there.
    """

    def __init__(
        self,
        streams: Mapping[str, Callable[[Any], RowStream | MixedStream]],
        weights: Mapping[str, float],
        position: Mapping[str, Any] | None,
    ) -> None:
        positions = {} if position is None else position["parts"]
        self._counts = dict.fromkeys(streams, 0) if position is None else dict(position["counts"])
        self._streams: dict[str, RowStream | MixedStream] = {}
        total = sum(weights.values())
        self._shares = {name: weights[name] / total for name in streams}
        for name, open_at in streams.items():
            with errors_within(f"sources.{name}"):
                self._streams[name] = open_at(positions.get(name))

    @property
    def passes(self) -> int:
        """Number of complete passes over the part with the fewest."""
        return min(stream.passes for stream in self._streams.values())

    def next(self) -> StreamedRow:
        """Return the next row.

        Raises:
            UserError: as `RowStream.next`.
        """
        rows = sum(self._counts.values()) + 1
        # The part furthest behind its share comes next; the first one of a tie.
        name = max(self._shares, key=lambda part: self._shares[part] * rows - self._counts[part])
        self._counts[name] += 1
        with errors_within(f"sources.{name}"):
            row, _, index, passes = self._streams[name].next()
        return StreamedRow(lambda: row_of_part(name, row()), list(self._shares).index(name), index, passes)

    @property
    def position(self) -> dict[str, Any]:
        """Where each part continues: plain data, for a checkpoint."""
        return {
            "counts": dict(self._counts),
            "parts": {name: stream.position for name, stream in self._streams.items()},
        }


def row_of_part(name: str, row: Row) -> Row:
    """Return a mixture's row, `{"source": name, "row": row}`, or the `BrokenRow` within that source."""
    return row.within(f"sources.{name}") if isinstance(row, BrokenRow) else {"source": name, "row": row}
