"""The interface of a source of rows. A source is a frozen dataclass: YAML can name it, and it can be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.rows.formats import Conversation, Example
from lit_probsft.data.rows.readers import BrokenRow, IndexedReader, Reader, RowSequence
from lit_probsft.data.rows.streams import MixedStream, RowStream
from lit_probsft.errors import UserError


@dataclass(frozen=True)
class Source(ABC):
    """Loads rows and turns each into a conversation. Decorate subclasses with `@dataclass(frozen=True)` too.

    A subclass implements `load` and `conversation`. Its errors name the field at fault; callers prefix the name of
    their own argument.
    """

    @abstractmethod
    def load(self) -> Sequence[Mapping[str, Any]]:
        """Load all rows: anything with a length and an index, such as a list of dicts or a `datasets.Dataset`."""

    @abstractmethod
    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """Return `row` as messages; the last one is the assistant's.

        Raises:
            UserError: the row cannot be used. The message need not say which row it is.
        """

    def load_with_broken(self) -> RowSequence:
        """Load all rows, with a `BrokenRow` in place of each unreadable one. By default the same as `load`."""
        return self.load()

    def example(self, row: Mapping[str, Any]) -> Example:
        """Return the training example in `row`. By default its conversation.

        Raises:
            UserError: as `conversation`.
        """
        return Conversation(self.conversation(row))

    def unused(self, row: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of the columns of `row` that its example is not made of. By default none is known."""
        return ()

    def for_prediction(self) -> Source:
        """Return this source for the `predict` stage, where a row may lack a response. By default one is required."""
        return self

    def reader(self, position: Any = None) -> Reader:
        """Read row by row, from the `position` of an earlier reader on. By default loads all rows first.

        Raises:
            UserError: the source cannot be read.
        """
        return IndexedReader(self.load_with_broken(), position)

    def stream(self, position: Any = None) -> RowStream | MixedStream:
        """Stream the rows endlessly, from the `position` of an earlier stream on.

        Raises:
            UserError: the source cannot be read.
        """
        return RowStream(self.reader, position)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the sources in a mixture, which metrics report separately. Empty for a single source."""
        return ()

    def quotas(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        """Number of documents of each part in one epoch of training. By default each document once.

        Args:
            counts: number of documents that each part has.

        Raises:
            UserError: the quotas asked for cannot be met with these counts.
        """
        return counts

    def describe(self) -> dict[str, Any]:
        """Return the class name and the fields as plain data, for the run record."""
        return {"source": type(self).__name__, **dataclasses.asdict(self)}

    def commits(self) -> Mapping[str, str]:
        """Known hub commits of the data, by name of the part; the name is empty for a single source."""
        return {}

    def identity(self) -> Any:
        """Plain data that identifies the rows without reading them. Streams compare it when they resume."""
        return self.describe()

    def fingerprint(self) -> str:
        """Return a digest that changes whenever any conversation could. It is part of the token cache's key.

        By default reads every row. Override it where something cheaper identifies the rows.
        """
        digest = hashlib.sha256()
        for row in self.load_with_broken():
            try:
                content = str(row.error) if isinstance(row, BrokenRow) else dataclasses.asdict(self.example(row))
            except UserError as error:  # raised again, with the row's index, when the row is used
                content = str(error)
            text = json.dumps(content, ensure_ascii=False, default=repr)
            digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()
