"""Figlet puzzles: words drawn in ASCII art."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.conversation import Message, validate_conversation
from lit_probsft.data.rows.source import Source
from lit_probsft.errors import UserError


@dataclass(frozen=True)
class FigletPuzzles(Source):
    """Words drawn in ASCII art, to be read back: a task that language models start out knowing nothing about.

    Puzzle i depends only on `seed` and i. With the defaults, 0-39999 are the paper's training rows and 40000-44999
    (`start=40000, count=5000`) its test rows. Drawing a row takes about 1.4 ms.

    Args:
        start: index of the first puzzle.
        count: number of puzzles.
        seed: seed of the generator. It says which puzzles these are, so it does not follow the run's seed.
        min_word_len: least letters in a word.
        max_word_len: most letters in a word.
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

    @override
    def load(self) -> Sequence[Mapping[str, Any]]:
        import reasoning_gym

        options = {
            "min_word_len": self.min_word_len,
            "max_word_len": self.max_word_len,
            "space_letters": self.space_letters,
        }
        size = self.start + self.count
        return _Puzzles(reasoning_gym.create_dataset("figlet_font", seed=self.seed, size=size, **options), self.start)

    @override
    def conversation(self, row: Mapping[str, Any]) -> list[Message]:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        if self.system is not None:
            turns.insert(0, {"role": "system", "content": self.system})
        return validate_conversation(turns)

    @override
    def fingerprint(self) -> str:
        from importlib.metadata import version

        # The fields and the generator's version determine every row.
        versions = [version("reasoning-gym"), version("pyfiglet")]
        return hashlib.sha256(json.dumps([versions, self.describe()], sort_keys=True).encode()).hexdigest()


class _Puzzles(Sequence[Mapping[str, Any]]):
    """Rows of a reasoning-gym data set from `start` on, each drawn on access."""

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
