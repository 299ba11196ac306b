"""`ppl up` as a process, its address and its children."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageDraw

from service.client import Client

TINY = {
    "steps": 20,
    "image_size": 32,
    "features": "none",  # the demo and the sample category have them
    "perceptual_size": 32,
    "base_width": 8,
    "num_keypoints": 4,
    "num_banks": 4,
    "bank_size": 4,
    "token_dim": 16,
    "memory_width": 16,
    "batch_size": 8,
    "mask_grid": 4,
    "checkpoint_every": 10,
}


class StackProcess:
    """A running `ppl up`, with more options and settings if given."""

    def __init__(self, data_root: Path, *options: str, **settings: str) -> None:
        self.data_root = data_root
        threads = {"PPL_INFERENCE_THREADS": "1", "PPL_TRAINING_THREADS": "1", "PPL_TRAINING_NICE": "0"}
        environment = {**os.environ, **threads, "PPL_DEVICE": "cpu", **settings}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "service.cli",
                "up",
                "--json",
                "--port",
                "0",
                "--data-root",
                str(data_root),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"ppl up did not start:\n{self.process.communicate()[1]}")
        announced = json.loads(line)
        self.url: str = announced["url"]
        self.docs: str = announced["docs"]
        self.pids: dict[str, int] = announced["pids"]

    def client(self) -> Client:
        return Client(self.url)

    @property
    def redis_url(self) -> str:
        """The address of the embedded Valkey, from the gateway's environment."""
        environment = Path(f"/proc/{self.child_pid('gateway')}/environ").read_text().split("\0")
        return next(item.partition("=")[2] for item in environment if item.startswith("PPL_REDIS_URL="))

    def kill_child(self, name: str) -> int:
        """Kill a child with SIGKILL and return its process id."""
        pid = self.child_pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def child_pid(self, name: str) -> int:
        """Return the current process id of a child from /proc."""
        mark = {"valkey": "valkey-server", "gateway": "service.gateway.serve"}.get(
            name, name.replace("worker-", " worker ").replace("gateway-", "--member ")
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:  # it may be restarting
            for pid in children(self.process.pid):
                if mark in command_of(pid):
                    return pid
            time.sleep(0.05)
        raise AssertionError(f"no process of {name}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


def children(parent: int) -> list[int]:
    """Return the ids of a process's live children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                found.append(int(folder.name))
    return found


def command_of(pid: int) -> str:
    """Return a process's command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, condition: Callable[[], bool], every_s: float = 0.1) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(every_s)
    return condition()


def drawing(seed: int, width: int = 40, height: int = 32) -> bytes:
    """Draw a small picture: a bright cross, turned and moved at random, on a dark background."""
    rng = random.Random(seed)
    image = Image.new("RGB", (width, height), (20, 30, rng.randrange(60)))
    draw = ImageDraw.Draw(image)
    x, y = width / 2 + rng.uniform(-4, 4), height / 2 + rng.uniform(-4, 4)
    dx, dy = rng.uniform(4, 10), rng.uniform(-6, 6)
    draw.line((x - dx, y - dy, x + dx, y + dy), fill=(230, 220, 40), width=3)
    draw.line((x + dy, y - dx, x - dy, y + dx), fill=(40, 220, 230), width=3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def archive(path: Path, count: int = 24, *, cameras: int = 1) -> Path:
    """Write a zip of ``count`` drawings; those of several cameras have different widths, in which nothing moves."""
    with zipfile.ZipFile(path, "w") as file:
        for index in range(count):
            file.writestr(f"crosses/{index:03}.png", drawing(index, 40 + 2 * (index % cameras)))
    return path
