"""Rows of folders written by `datasets`' save_to_disk, and of its data sets in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_probsft.data.rows.arrow_rows import ArrowRows, decoders_of
from lit_probsft.errors import UserError, first_line, near_matches


def check_saved(path: Path) -> None:
    """Refuse a folder that was not written by save_to_disk, before all its files are read for a fingerprint.

    Raises:
        UserError: says to name the files instead.
    """
    if not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        raise UserError(
            "path",
            f"the folder {str(path)!r} was not written by datasets' save_to_disk; name its files instead, such as "
            f"{str(path / '*.jsonl')!r}",
        )


def read_saved(path: Path, split: str | None) -> ArrowRows:
    """Read a folder with one split or several, which `check_saved` has accepted.

    Raises:
        UserError: the folder is damaged, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
        if not isinstance(loaded, DatasetDict):
            return rows_of_dataset(loaded)
        name = split or "train"
        if name in loaded:
            return rows_of_dataset(loaded[name])
    except OSError:
        raise
    except Exception as error:  # of a damaged folder: of json, of Arrow, of features that do not exist ...
        raise UserError("path", f"the saved folder {str(path)!r} is damaged: {first_line(error)}") from error
    raise UserError(
        "split", f"no split {name!r} among {', '.join(loaded)} of {str(path)!r}.{near_matches(name, loaded)}"
    )


def rows_of_dataset(dataset: Any) -> ArrowRows:
    """Return the rows of a `datasets.Dataset`."""
    table = dataset.with_format("arrow")[:]
    return ArrowRows(table, decoders=decoders_of(dataset.features), fingerprint=getattr(dataset, "_fingerprint", ""))
