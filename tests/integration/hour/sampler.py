"""Samples of a running stack: memory, descriptors and threads of its processes, temporary files, Redis keys, disk."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import redis

from tests.support.stack_process import StackProcess, children, command_of

PARTS = {
    "gateway": "service.gateway.serve",
    "worker-inference": " worker inference",
    "worker-training": " worker training",
    "valkey": "valkey-server",
}
_ID = re.compile(r"[0-9a-f]{8,}|\d{4,}|[\w.-]+@[\w.-]+|\w+-\d+-\w+")


@dataclass(frozen=True)
class Process:
    """What a process holds.

    Attributes:
        memory_kb: the resident set; not the proportional one (PSS), which changes with other programs' processes.
        own_kb: of it, what no file backs.
    """

    pid: int
    memory_kb: int
    own_kb: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Sample:
    """The state of a stack at a moment.

    Attributes:
        at: monotonic time in seconds.
        processes: by part, with "supervisor".
        children: number of short-lived processes by what they do: decoders of videos, forks of Valkey, others.
        children_kb: memory of these.
        temporary: names of files and folders below the stack's temporary folder.
        keys: number of Redis keys by their form.
        redis_bytes: memory that Valkey uses by its own account.
        disk: files and bytes by folder of the data root.
    """

    at: float
    processes: dict[str, Process]
    children: dict[str, int]
    children_kb: int
    temporary: list[str]
    keys: dict[str, int]
    redis_bytes: int
    disk: dict[str, tuple[int, int]] = field(default_factory=dict)


class Sampler:
    """A thread that samples a stack every few seconds.

    Args:
        temporary: the folder that the stack has as TMPDIR.
        log: file to which every sample that is taken is appended as a line of JSON, if given.
    """

    def __init__(self, stack: StackProcess, temporary: Path, every_s: float, log: Path | None = None) -> None:
        self.samples: list[Sample] = []
        self.faults: list[str] = []
        self._stack, self._temporary, self._every_s, self._log = stack, temporary, every_s, log
        self._redis = redis.Redis.from_url(stack.redis_url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples by itself."""
        self._stop.set()
        self._thread.join(60)

    def close(self) -> None:
        self._redis.close()

    def take(self) -> Sample:
        """Return a sample of this moment. Raises RuntimeError if a part is missing."""
        root = self._stack.process.pid
        processes, others, others_kb = {"supervisor": _look(root)}, Counter[str](), 0
        for pid in _descendants(root):
            command = command_of(pid)
            part = next((name for name, mark in PARTS.items() if mark in command), "")
            if part and part not in processes:
                processes[part] = _look(pid)
                continue
            kind = "decoder" if "video_decoder" in command else f"fork of {part}" if part else "other"
            with suppress(OSError, KeyError):  # it has ended
                others_kb += _look(pid).memory_kb
                others[kind] += 1
        if missing := PARTS.keys() - processes.keys():
            raise RuntimeError(f"no process of {missing}")
        names = [str(path.relative_to(self._temporary)) for path in _walk(self._temporary)]
        keys = Counter(_ID.sub("*", key.decode()) for key in self._redis.scan_iter(count=1000))
        used = int(self._redis.info("memory")["used_memory"])
        disk = _measure_disk(self._stack.data_root)
        sample = Sample(time.monotonic(), processes, dict(others), others_kb, names, dict(keys), used, disk)
        if self._log:
            with self._log.open("a") as file:
                file.write(json.dumps(asdict(sample)) + "\n")
        return sample

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                sample = self.take()
            except (RuntimeError, OSError, KeyError) as error:
                self.faults.append(f"no sample: {error!r}")
                continue
            if self.samples:
                before = self.samples[-1].processes
                for part, process in sample.processes.items():
                    if process.pid != before[part].pid:
                        self.faults.append(f"{part} was restarted")
            self.samples.append(sample)


def _descendants(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        found += [child, *_descendants(child)]
    return found


def _look(pid: int) -> Process:
    folder = Path(f"/proc/{pid}")
    sizes = _numbers(folder / "smaps_rollup")
    return Process(
        pid,
        sizes["Rss"],
        sizes["Anonymous"],
        len(list((folder / "fd").iterdir())),
        _numbers(folder / "status")["Threads"],
    )


def _numbers(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)\b", file.read_text(), re.MULTILINE)}


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files and folders below one; what is deleted meanwhile is left out."""
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


def _measure_disk(data_root: Path) -> dict[str, tuple[int, int]]:
    files, sizes = Counter[str](), Counter[str]()
    for path in _walk(data_root):
        with suppress(OSError):  # deleted meanwhile
            if path.is_file():
                part = path.relative_to(data_root).parts[0]
                sizes[part] += path.stat().st_size
                files[part] += 1
    return {part: (files[part], sizes[part]) for part in files}
