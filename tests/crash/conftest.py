"""One fork server for all that crashes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("cache"))
    yield server
    server.close()
