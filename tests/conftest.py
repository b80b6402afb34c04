"""All tests run offline, on one thread, with a cache of their own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Set before torch and the Hugging Face libraries are imported: tests never contact a hub, and several threads would be
# slower than one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


# DeepSpeed compiles its extension into the environment, not into the user's home.
if sys.prefix != sys.base_prefix:
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))

LONGEST = (
    "test_mistakes",
    "test_equal",
    "test_resume",
    "test_kills",
    "test_ends",
    "test_export",
    "test_signals",
    "test_disk",
    "test_loading",
)
"""Long files, the longest first, after the mistakes: their hints name the classes that earlier tests have imported."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that all workers of `--dist loadfile` end at about the same time."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Exit if a killed build of DeepSpeed's extension has left its lock, on which tests would wait forever."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser()
    for lock in root.rglob("lock"):
        if time.time() - lock.stat().st_mtime > 600:
            pytest.exit(f"{lock} was left by a killed build; delete it", returncode=2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-messages", action="store_true", help="rewrite the golden table of error messages")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    os.environ.pop("PL_GLOBAL_SEED", None)  # the seed of an earlier test's run


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LIT_PROBSFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts runs of the command line (see `tests.crash.server`)."""
    from tests.crash.server import Server

    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()
