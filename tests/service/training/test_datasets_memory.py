"""The gateway's memory does not grow with the size of a dataset, measured by the process's peak."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.contract.datasets.store import DatasetFiles
from tests.service.gateway.test_server import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")

MEBI = 2**20
GROWTH_MIB = 48  # a few buffers of 1 MiB, and what the allocator keeps of them


def peak_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


@pytest.fixture
def server(redis_url, redis_client, data_root) -> Iterator[Server]:
    server = Server(redis_url, data_root)
    server.wait()
    yield server
    server.stop()


@pytest.fixture
def warmed(server) -> float:
    """The peak after a small dataset, so that what is loaded once does not count."""
    for field in ("archive", "images"):
        httpx.post(f"{server.url}/datasets", files={field: ("a.png", b"x" * 2 * MEBI)})
    return peak_mib(server)


def test_archive_of_hundreds_of_megabytes(server, warmed, tmp_path, data_root):
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(5):
            with archive.open(f"{number}.mp4", "w") as member:
                for _ in range(60):
                    member.write(bytes(MEBI))

    with path.open("rb") as file:
        answer = httpx.post(f"{server.url}/datasets", files={"archive": ("large.zip", file)}, timeout=120)

    assert answer.status_code == 201, answer.text
    assert DatasetFiles(data_root).archive(answer.json()["id"]).stat().st_size == path.stat().st_size > 300 * MEBI
    assert peak_mib(server) - warmed < GROWTH_MIB


def test_many_files_one_by_one(server, warmed):
    """Each is too short to fill a buffer, so what waited for the form's end would show."""

    def body() -> Iterator[bytes]:
        for number in range(300):
            head = f'--b\r\nContent-Disposition: form-data; name="images"; filename="{number}.png"\r\n\r\n'
            yield head.encode() + bytes(700_000) + b"\r\n"
        yield b"--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{server.url}/datasets", content=body(), headers=headers, timeout=120)

    assert (answer.status_code, answer.json()["files"]) == (201, 300)
    assert answer.json()["size_bytes"] > 300 * 700_000
    assert peak_mib(server) - warmed < GROWTH_MIB
