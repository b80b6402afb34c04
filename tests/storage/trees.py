"""Trees of files for tests: a file is its bytes, a folder is a dictionary of what it holds by name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from lit_probsft.storage.checkpoint_files import MANIFEST

quick = settings(max_examples=25, deadline=None)

SINGLE_PROCESS: Any = SimpleNamespace(is_global_zero=True, global_rank=0, world_size=1, barrier=lambda: None)
"""What `write_folder` needs of a strategy."""

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..", MANIFEST) and len(name.encode()) < 100
)
files = st.binary(max_size=40)
folders = st.recursive(
    st.dictionaries(names, files, max_size=3),
    lambda inner: st.dictionaries(names, inner | files, max_size=3),
    max_leaves=6,
)
trees = files | folders


def write(tree: Any, path: Path) -> None:
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        return
    path.mkdir(exist_ok=True)
    for name, inner in tree.items():
        write(inner, path / name)


def read(path: Path) -> Any:
    """None if nothing exists at `path`."""
    if path.is_dir():
        return {inner.name: read(inner) for inner in path.iterdir()}
    return path.read_bytes() if path.exists() else None


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A new folder for each example that hypothesis draws."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
