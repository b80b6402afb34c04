"""Rows of a data set on the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.arrow_rows import ArrowRows, decode_fields, decoders_of
from lit_probsft.data.rows.readers import LazyRow, Reader
from lit_probsft.data.rows.saved_folders import rows_of_dataset
from lit_probsft.errors import UserError, first_line, near_matches
from lit_probsft.storage.hub import dataset_commit


def load_from_hub(path: str | list[str], name: str | None, split: str | None, revision: str | None) -> ArrowRows:
    """Load a split of a hub data set, `train` by default.

    Raises:
        UserError: names `path`, `name` or `split`, whichever the hub refuses.
    """
    return rows_of_dataset(_load(path, name, split, revision))


def stream_from_hub(path: str | list[str], name: str | None, split: str | None, revision: str | None) -> Any:
    """Open a split as an iterable data set of `datasets`, without decoding images, audio or video.

    Arguments and errors as `load_from_hub`.
    """
    dataset = _load(path, name, split, revision, streaming=True)
    return dataset.decode(False) if dataset.features else dataset


def _load(path: str | list[str], name: str | None, split: str | None, revision: str | None, **options: Any) -> Any:
    from datasets import get_dataset_split_names, load_dataset

    split = split or "train"
    # Pin the commit that the run records, whatever is pushed meanwhile.
    revision = dataset_commit(str(path), revision) or revision
    try:
        return load_dataset(path, name, split=split, revision=revision, **options)
    except Exception as error:  # the hub's errors share no base class
        text = str(error)
        if "scripts are no longer supported" in text:
            raise UserError(
                "path",
                f"expected a data set of files, {path!r} runs code of its own, which is never executed; the hub often "
                "has such a set converted, at `revision: refs/convert/parquet`",
            ) from error
        if "split" in text.lower():
            known = get_dataset_split_names(path, name, revision=revision)
            hint = near_matches(split, known)
            raise UserError("split", f"no split {split!r} in {path!r}, which has {', '.join(known)}.{hint}") from error
        raise UserError(
            "name" if "config" in text.lower() else "path",
            f"expected a local file or a data set on the hub, could not load {path!r}: {first_line(error)}",
        ) from error


class HubReader(Reader):
    """Reads a streamed data set of the `datasets` library. Its position is that data set's state."""

    def __init__(self, dataset: Any, position: dict[str, Any] | None) -> None:
        self._dataset, self._initial = dataset, position
        self._decoders = decoders_of(dataset.features)
        if position is not None:
            dataset.load_state_dict(position)
        self._rows = iter(dataset)
        self._started = False

    @override
    def next(self) -> LazyRow | None:
        self._started = True
        try:
            row = next(self._rows, None)
        except Exception as error:  # the hub's errors share no base class
            problem = f"the hub gave no more rows: {type(error).__name__}: {first_line(error)}"
            raise UserError("path", problem) from error
        return None if row is None else lambda: decode_fields(row, self._decoders)

    @property
    @override
    def position(self) -> dict[str, Any] | None:
        return self._dataset.state_dict() if self._started else self._initial
