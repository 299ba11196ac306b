"""Count the source files that one request passes.

    python -m benchmarks.trips [--tree CHECKOUT] [--list] [--json]

A file counts if one of its functions runs, in the gateway or in a worker, between a request and its answer (for
``POST /train-jobs``: until the job has ended), seen by ``sys.setprofile`` in every thread of every process. Functions
that also run in twelve idle seconds, such as heartbeats, do not count.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import httpx

_PACKAGES = ("model", "service", "worker")
_UP_S = 120.0
_JOB_S = 300.0
_IDLE_S = 12.0
_SETTINGS = {"steps": "12", "batch_size": "4", "image_size": "32", "num_keypoints": "4"}

# Imported by every Python process of the stack; {log} gets a line for each file seen in the window of that number.
_PROFILER = """
import mmap, os, sys, threading
_root = os.environ["TRIPS_ROOT"] + os.sep
_window = mmap.mmap(os.open(os.environ["TRIPS_WINDOW"], os.O_RDONLY), 1, prot=mmap.PROT_READ)
_log = os.open(os.path.join(os.environ["TRIPS_LOGS"], str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_seen = set()
def _profile(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_name != "<module>":
        key = (_window[0], code.co_filename, code.co_qualname)
        if key not in _seen:
            _seen.add(key)
            if key[1].startswith(_root):
                os.write(_log, f"{key[0]} {key[1][len(_root):]} {key[2]}\\n".encode())
threading.setprofile(_profile)
sys.setprofile(_profile)
"""


class Trips:
    """A running stack with a profiler in every process."""

    def __init__(self, folder: Path, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)
        self._logs = folder / "logs"
        with (folder / "window").open("r+b") as file:
            self._window = mmap.mmap(file.fileno(), 1)

    @contextmanager
    def window(self) -> Iterator[set[tuple[str, str]]]:
        """Fill a set with the functions that run inside the block, as (file, name)."""
        found: set[tuple[str, str]] = set()
        number = self._window[0] + 1
        self._window[0] = number
        yield found
        self._window[0] = number + 1
        for log in self._logs.iterdir():
            for seen, path, name in (line.split(" ", 2) for line in log.read_text().splitlines()):
                if int(seen) == number and path.split("/")[0] in _PACKAGES:
                    found.add((path, name))

    def train(self, archive: bytes, category: str) -> None:
        """Train from an archive and wait for the end of the job. Raises RuntimeError if it fails."""
        answer = self._post_job(archive, category, activate="always")  # the version is bad after so few steps
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            answer = self._post_job(archive, category)  # an older checkout activates any version
        answer.raise_for_status()
        deadline = time.monotonic() + _JOB_S
        while time.monotonic() < deadline:
            job = self.http.get(f"/train-jobs/{answer.json()['id']}").json()
            if job["status"] == "succeeded":
                return
            if job["status"] in ("failed", "cancelled"):
                raise RuntimeError(f"the job {job['status']}: {job}")
            time.sleep(0.5)
        raise RuntimeError(f"the job did not end within {_JOB_S:g} s")

    def _post_job(self, archive: bytes, category: str, **fields: str) -> httpx.Response:
        return self.http.post(
            "/train-jobs",
            data={"category": category, **_SETTINGS, **fields},
            files={"archive": ("pictures.zip", archive)},
            headers={"Idempotency-Key": category},
        )

    def estimate(self, picture: bytes, category: str) -> None:
        """Estimate one picture's pose."""
        answer = self.http.post("/estimate", data={"category": category}, files={"images": ("one.jpg", picture)})
        answer.raise_for_status()


@contextmanager
def running_stack(tree: Path) -> Iterator[Trips]:
    """Run the code in ``tree`` under the profiler during the block. Raises RuntimeError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        (folder / "window").write_bytes(b"\0")
        (folder / "sitecustomize.py").write_text(_PROFILER)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([name, str(tree)]),
            "TRIPS_ROOT": str(tree),
            "TRIPS_WINDOW": str(folder / "window"),
            "TRIPS_LOGS": str(folder / "logs"),
        }
        command = [sys.executable, "-P", "-m", "service.cli", "up", "--json", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--data-root", str(folder / "data")],
            env=environment,
            cwd=name,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout
            started = json.loads(process.stdout.readline() or "null")
            if not started:
                raise RuntimeError("the stack did not start")
            trips = Trips(folder, started["url"])
            _wait_until_ready(trips.http)
            yield trips
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_until_ready(http: httpx.Client) -> None:
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline:
        if http.get("/readyz").status_code == 200:
            return
        time.sleep(0.5)
    raise RuntimeError(f"the stack was not ready within {_UP_S:g} s")


def count_trips(tree: Path) -> dict[str, list[str]]:
    """Return the files of each trip. Every kind of request is sent once before it is counted."""
    with as_file(files("service") / "samples") as samples, zipfile.ZipFile(samples / "dog.zip") as pack:
        names = [name for name in pack.namelist() if name.endswith((".jpg", ".png"))][:32]
        pictures = [pack.read(name) for name in names]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        for name, picture in zip(names, pictures, strict=True):
            made.writestr(Path(name).name, picture)
    with running_stack(tree) as trips:
        trips.train(archive.getvalue(), "warm")
        trips.estimate(pictures[0], "warm")
        found: dict[str, list[str]] = {}
        with trips.window() as idle:
            time.sleep(_IDLE_S)
        with trips.window() as estimate:
            trips.estimate(pictures[1], "warm")
        with trips.window() as train:
            trips.train(archive.getvalue(), "counted")
        for name, trip in (("POST /estimate", estimate), ("POST /train-jobs", train)):
            found[name] = sorted({path for path, _ in trip - idle})
        return found


def main() -> int:
    """Print the counts of one checkout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trips", description=__doc__)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="checkout whose code runs")
    parser.add_argument("--list", action="store_true", help="name the files")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = count_trips(options.tree.resolve())
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, trip in found.items():
        print(f"{name}: {len(trip)} files")
        if options.list:
            print("".join(f"  {path}\n" for path in trip), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
