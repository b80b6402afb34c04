"""The splits of a data module, and the splits that each stage reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_probsft.data.rows.row_source import as_source
from lit_probsft.data.rows.source import Source
from lit_probsft.data.rows.splits import LoadedSource, Split
from lit_probsft.errors import UserError

_REQUIRED = {"fit": "train", "validate": "validation", "test": "test", "predict": "predict"}
_ALTERNATIVES = {
    "validation": " (or data.validation_fraction)",
    "predict": " (or one in data.test or data.validation)",
}


def watch_split(name: str) -> str:
    """The name of a watched set's split, used for its rows, counts and errors."""
    return f"watch.{name}"


class Splits(dict[str, Split]):
    """Splits by name: `train`, `validation`, `test`, `predict` and `watch.NAME`.

    Args:
        sources: the source of each split, or text short for `Rows(path=text)`; None for a split without rows.
        watch: sources of the watched sets, by name.
        validation_fraction: share of the training rows that are held out for validation.
        seed: decides which rows are held out.
        skips: whether rows that cannot be read are skipped.

    Raises:
        UserError: on access to a split without rows.
    """

    def __init__(
        self,
        sources: Mapping[str, Source | str | None],
        watch: Mapping[str, Source | str],
        *,
        validation_fraction: float,
        seed: int,
        skips: bool,
    ) -> None:
        super().__init__()
        for name, value in sources.items():
            if value is not None:
                source = as_source(value).for_prediction() if name == "predict" else as_source(value)
                self[name] = Split(LoadedSource(source, name, skips=skips))
        if validation_fraction:
            rows = self["train"].loaded
            self["train"] = Split(rows, "kept", validation_fraction, seed)
            self["validation"] = Split(rows, "held_out", validation_fraction, seed)
        for name, value in watch.items():
            self[watch_split(name)] = Split(LoadedSource(as_source(value), watch_split(name), skips=skips))
        if "predict" not in self and (fallback := self.get("test") or self.get("validation")):
            self["predict"] = fallback

    def __missing__(self, name: str) -> Split:
        alternative = _ALTERNATIVES.get(name, "")
        raise UserError(f"data.{name}", f"expected a source of rows, such as a file{alternative}; got none")

    def of_stage(self, stage: str | None) -> list[str]:
        """Returns the names of the splits that `stage` reads; all of them for None.

        Raises:
            UserError: the stage has no rows.
        """
        if stage is None:
            return list(self)
        required = _REQUIRED[stage]
        self[required]
        names = [required]
        if stage == "fit" and "validation" in self:
            names.append("validation")
        if stage in ("fit", "validate"):
            names += [name for name in self if name.startswith(watch_split(""))]
        return names

    def describe(self) -> dict[str, Any]:
        """Returns each split's source as plain data, for the record of a run."""
        return {name: {**split.loaded.source.describe(), "part": split.part} for name, split in self.items()}

    def commits(self) -> dict[str, str]:
        """Returns the hub commits of the sources, by argument."""
        found = {}
        for split in self.values():
            for part, commit in split.loaded.source.commits().items():
                found[f"data.{split.loaded.argument}{'.sources.' if part else ''}{part}"] = commit
        return found
