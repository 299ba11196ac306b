"""What the tests ask of a compose project, and the pictures that they send."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stack:
    """One running compose project."""

    environment: dict[str, str]
    api: str
    prometheus: str

    def compose(self, *words: str, check: bool = True, timeout_s: float = 300) -> str:
        """Runs `docker compose`; its standard output. An AssertionError shows all it printed if it fails."""
        command = ["docker", "compose", "--profile", "observe", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def up(self) -> None:
        """Start everything and wait until all health checks pass."""
        self.compose("up", "--detach", "--wait", timeout_s=600)
        wait_for(lambda: self.get("/readyz").is_success, "the gateway to be ready")

    def get(self, path: str) -> httpx.Response:
        """Send a GET request to the API."""
        return httpx.get(self.api + path, timeout=30, trust_env=False, headers=self.key())

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        """Send a POST request to the API."""
        return httpx.post(self.api + path, timeout=60, trust_env=False, headers=self.key(), **arguments)

    def key(self) -> dict[str, str]:
        """The header with the key that the gateway made at its first start."""
        text = self.compose("exec", "-T", "gateway", "cat", "/data/first-api-key").strip()
        return {"Authorization": f"Bearer {text}"}

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query of Prometheus."""
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, trust_env=False)
        return answer.raise_for_status().json()["data"]["result"]  # type: ignore[no-any-return]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Poll until true; an unreachable server counts as false."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(1)


def drawn_figure(index: int, side: int = 64) -> bytes:
    """Return a JPEG of a stick figure whose limbs move with the index."""
    image = Image.new("RGB", (side, side), (210, 205, 190))
    draw = ImageDraw.Draw(image)
    swing = (index % 9 - 4) * 2
    x = side // 2 + index % 5 - 2
    draw.ellipse((x - 6, 8, x + 6, 20), fill=(150, 60, 40))
    draw.line((x, 20, x, 40), fill=(40, 60, 150), width=5)
    for sign in (-1, 1):
        draw.line((x, 24, x + sign * 14, 32 + sign * swing), fill=(40, 120, 60), width=4)
        draw.line((x, 40, x + sign * (8 + swing // 2), 60), fill=(90, 40, 120), width=4)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def drawn_archive(count: int) -> bytes:
    """Return a zip of stick figures."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(count):
            archive.writestr(f"figures/{index:03}.jpg", drawn_figure(index))
    return buffer.getvalue()


def free_port() -> int:
    """Return a free port of the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing_engine() -> str | None:
    """Return why there is no engine to test with, or None."""
    if os.environ.get("PPL_TEST_DOCKER") != "1":
        return "building the images takes long: set PPL_TEST_DOCKER=1 where a Docker engine runs"
    if shutil.which("docker") is None:
        return "no Docker engine: the program docker is not installed"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
            return f"no Docker engine: `{' '.join(command)}` fails: {reason}"
    return None
