"""Every test runs offline, on one thread, with its own cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

# Before torch and the Hugging Face libraries are imported: no test may reach for a hub, and spinning threads are slower
# than one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-messages", action="store_true", help="rewrite the golden table of error messages")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


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
