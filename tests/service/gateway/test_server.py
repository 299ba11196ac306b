"""The gateway as a process of its own, over a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.contract.versions.store import VersionStore
from service.versions.samples import install_samples


class Server:
    """``python -m service`` on a free port of the loopback."""

    def __init__(self, redis_url: str, data_root: Path, **changes: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PPL_")},
            "PPL_PORT": str(port),
            "PPL_REDIS_URL": redis_url,
            "PPL_DATA_ROOT": str(data_root),
            **changes,
        }
        self.url, self.data_root = f"http://127.0.0.1:{port}", data_root
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=data_root,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.stdout.read().decode()
            try:
                if httpx.get(f"{self.url}/livez", timeout=1).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        pytest.fail("the gateway did not start")

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            output, _ = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, _ = self.process.communicate()
        return output.decode()


@pytest.fixture
def server(redis_url, redis_client, data_root) -> Iterator[Server]:
    server = Server(redis_url, data_root, PPL_MAX_BODY_BYTES="1000000", PPL_ESTIMATE_TIMEOUT_S="20")
    server.wait()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def lasting(redis_url, tmp_path_factory) -> Iterator[Server]:
    """Like ``server``, for tests that leave it as it was; it has the sample categories."""
    root = tmp_path_factory.mktemp("lasting")
    install_samples(VersionStore(root))
    server = Server(redis_url, root, PPL_MAX_BODY_BYTES="1000000", PPL_ESTIMATE_TIMEOUT_S="20")
    server.wait()
    yield server
    server.stop()


async def test_graceful_end_finishes_requests_in_flight(server, consumer, publish, make_picture):
    publish("dog")
    consumer.gate.clear()
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        files = {"images": ("a.png", make_picture())}
        answer = asyncio.create_task(http.post("/estimate", data={"category": "dog"}, files=files))
        while not consumer.batches:
            await asyncio.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert server.process.poll() is None
        consumer.gate.set()
        assert (await answer).status_code == 200
    output = await asyncio.to_thread(server.stop)
    assert server.process.returncode in (0, -signal.SIGTERM), output
    assert "Traceback" not in output


async def test_ends_at_once_when_idle(server):
    started = time.monotonic()
    output = await asyncio.to_thread(server.stop)
    assert time.monotonic() - started < 5
    assert "Traceback" not in output


async def test_too_large_bodies_get_an_answer_that_clients_can_read(lasting, problem):
    async with httpx.AsyncClient(base_url=lasting.url, timeout=30) as http:
        declared = await http.post("/estimate", data={"category": "dog"}, files={"images": ("a", bytes(20_000_000))})
        problem(declared, 413, "body_too_large")

        async def body():
            yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
            for _ in range(20):
                yield bytes(1_000_000)
            yield b"\r\n--b--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=b"}
        chunked = await http.post("/estimate", content=body(), headers=headers)
        problem(chunked, 413, "body_too_large")
        assert (await http.get("/livez")).status_code == 200


async def test_a_thousand_files_get_an_answer(lasting, make_picture, problem):
    files = [("images", (f"{i}.png", make_picture(8, 8))) for i in range(1000)]
    async with httpx.AsyncClient(base_url=lasting.url, timeout=30) as http:
        response = await http.post("/estimate", data={"category": "dog"}, files=files)
        problem(response, 413, "too_many_images")


async def test_client_that_hangs_up_during_an_upload_leaves_nothing(lasting, redis_client):
    data_root = lasting.data_root
    _, writer = await asyncio.open_connection(*lasting.url.removeprefix("http://").split(":"))
    head = (
        "POST /train-jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 50000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="archive"; filename="a"\r\n\r\n'
    )
    writer.write(head.encode() + bytes(5_000_000))
    await writer.drain()
    for _ in range(100):
        if list(data_root.glob("jobs/*/archive")):
            break
        await asyncio.sleep(0.05)
    assert list(data_root.glob("jobs/*/archive"))
    writer.close()
    await writer.wait_closed()
    for _ in range(100):
        if not list(data_root.glob("jobs/*")):
            break
        await asyncio.sleep(0.05)
    assert list(data_root.glob("jobs/*")) == []
    assert redis_client.keys("ppl:job*") == []
    assert httpx.get(f"{lasting.url}/livez").status_code == 200


def test_what_is_no_http_gets_a_problem_document_too(lasting):
    port = int(lasting.url.rpartition(":")[2])
    for nonsense in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(nonsense)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 "), answer
        assert b"content-type: application/problem+json" in head
        assert json.loads(body)["code"] == "bad_request"


def test_offer_of_another_protocol_is_answered_in_this_one(redis_url, data_root):
    """A handshake of a web socket would pass by the keys and the log."""
    server = Server(redis_url, data_root, PPL_API_KEYS="true")
    server.wait()
    for offered in ("websocket", "h2c"):
        headers = {"Connection": "Upgrade", "Upgrade": offered, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        answer = httpx.get(f"{server.url}/priors", headers={**headers, "Sec-WebSocket-Version": "13"})
        assert answer.status_code == 401
        assert answer.json()["code"] == "unauthorized"
        assert answer.headers["x-request-id"]
    assert "WARNING" not in server.stop().partition("first API key")[2]


def test_first_start_with_keys_makes_one_and_says_where(redis_url, data_root):
    server = Server(redis_url, data_root, PPL_API_KEYS="true")
    server.wait()
    key = (data_root / "first-api-key").read_text().strip()
    assert httpx.get(f"{server.url}/priors").status_code == 401
    answer = httpx.get(f"{server.url}/priors", headers={"Authorization": f"Bearer {key}", "X-Request-ID": "look"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "look")
    log = server.stop()
    assert f"is in {data_root / 'first-api-key'}" in log
    assert key not in log
    assert "[look] service.access.guard: GET /priors 200 in" in log
    again = Server(redis_url, data_root, PPL_API_KEYS="true")
    again.wait()
    assert "first API key" not in again.stop()


def test_a_socket_beyond_the_loopback_address_needs_keys_whatever_the_setting(redis_url, data_root):
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        environment = {
            **os.environ,
            "PPL_REDIS_URL": redis_url,
            "PPL_DATA_ROOT": str(data_root),
            "PPL_API_KEYS": "false",
        }
        command = [sys.executable, "-P", "-m", "service.gateway.serve", "--fd", str(listener.fileno())]
        done = subprocess.run(
            command, env=environment, pass_fds=[listener.fileno()], capture_output=True, timeout=30, check=False
        )
    assert done.returncode != 0
    assert b"PPL_API_KEYS is false and PPL_HOST is 0.0.0.0" in done.stderr


def test_bad_setting_is_said_at_the_start(redis_url, data_root):
    server = Server(redis_url, data_root, PPL_QUEUE_LIMIT="5")
    assert server.process.wait(timeout=20) != 0
    assert "PPL_QUEUE_LIMIT is 5; it must be at least PPL_MAX_IMAGES" in server.stop()
