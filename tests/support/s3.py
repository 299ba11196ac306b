"""A real S3 server (moto's) in a process of its own, with an empty bucket."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.stack.valkey import free_port


@contextmanager
def s3_server(log: Path) -> Iterator[dict[str, str]]:
    """Run the server during the block; yield the environment with which processes reach it and its bucket."""
    address = f"http://127.0.0.1:{free_port()}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", address.rpartition(":")[2]],
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.put(f"{address}/ppl-bucket", timeout=10).raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield {
            "PPL_STORE_URL": "s3://ppl-bucket/lab",
            "AWS_ENDPOINT": address,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.wait()
