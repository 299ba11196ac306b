"""Measure the pace of training beside busy processes, and the latency of estimates beside training and videos.

python -m benchmarks.speed.contention [--json] [--seconds 15] [--busy 0 1 3] [--ways NAME …] [--no-estimates]
python -m benchmarks.speed.contention --busy --ways "the worker's default"                  # the estimates alone

The ways of training take turns beside each number of busy processes (endless loops at nice 0). The ratio is that of
the worker's default: its pace beside one busy process divided by its idle pace. Estimates: one client in a closed
loop, idle, while the way trains, beside three videos in the background, and beside both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from service.client import Client

from .load import Load, closed_loop, post
from .photos import photos, upload
from .report import Check, Report, Row, run
from .stack import Stack

ONE_BAR, THREE_BAR = 0.55, 1 / 3
_WARM_UP_STEPS = 4
_START_S = 120.0
_STEPS = 1_000_000
_FRAMES = 20_000
_IDLE = "estimates, idle"
_LADEN = "estimates, beside training and three videos"


@dataclass(frozen=True)
class Way:
    """One way of sharing a machine.

    Attributes:
        threads: torch threads in each process; 0 for the worker's default.
        processes: number of processes that share each batch.
    """

    threads: int
    nice: int
    processes: int = 1


def ways(cores: int) -> dict[str, Way]:
    """Return the ways compared, the worker's default last."""
    return {
        "all threads, nice 10 (until 0.1)": Way(cores, 10),
        "all threads, nice 0": Way(cores, 0),
        "one thread, nice 0": Way(1, 0),
        "one thread a process, nice 0": Way(1, 0, cores),
        DEFAULT: Way(0, 0),
    }


DEFAULT = "the worker's default"


def measure(options: argparse.Namespace) -> Report:
    """Measure each way beside each number of busy processes."""
    compared = {name: way for name, way in ways(_cores()).items() if not options.ways or name in options.ways}
    paces: dict[str, dict[int, float]] = {name: {} for name in compared}
    for busy in options.busy:
        for name, way in compared.items():
            with _busy_processes(busy), _training(way) as trainer:
                paces[name][busy] = _pace(trainer, options.seconds)
    rows: list[Row] = []
    idle = max((pace.get(0, 0.0) for pace in paces.values()), default=0.0)
    for name, pace in paces.items():
        row: Row = {"way": name, **{f"steps_per_s beside {busy}": value for busy, value in pace.items()}}
        if pace:
            rows.append({**row, **{f"of idle, beside {busy}": value / pace[0] for busy, value in pace.items() if busy}})
    report = Report("contention", f"training (compact) beside busy processes on {_cores()} cores", rows)
    default = paces.get(DEFAULT, {})
    if {0, 1} <= default.keys():
        report.ratio, report.bar = default[1] / default[0], ONE_BAR
        report.checks.append(Check("idle pace, of the fastest way's", default[0] / idle, 0.9))
    if {0, 3} <= default.keys():
        report.checks.append(Check("beside three busy processes, of idle", default[3] / default[0], THREE_BAR))
    if options.estimates:
        rows += (found := _estimates(compared, options.seconds))
        idle_ms, laden_ms = ([row["p95_ms"] for row in found if row["way"] == way] for way in (_IDLE, _LADEN))
        ratio = max(laden_ms) / (sum(idle_ms) / len(idle_ms))
        report.checks.append(Check("p95 of an estimate beside training and three videos, of idle", ratio, 2.0, False))
    return report


def _estimates(compared: dict[str, Way], seconds: float) -> list[Row]:
    """Measure estimates beside each way, beside videos and beside both, and idle before and after."""
    requests = [post("/estimate", *upload("dog", photo)) for photo in photos(8)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:

        def answer(name: str) -> Row:
            closed_loop(stack.urls, requests, 1, 1.0)
            load: Load = closed_loop(stack.urls, requests, 1, seconds)
            p50, p95, p99 = map(load.ms, (50, 95, 99))
            return {"way": name, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}

        rows.append(answer(_IDLE))
        for name, way in compared.items():
            with _training(way) as trainer:
                _skip(trainer, _WARM_UP_STEPS)
                rows.append(answer(f"estimates, beside training: {name}"))
        with _videos(stack.urls[0], Path(folder)) as frames:
            for name in ("estimates, beside three videos", _LADEN):
                with _training(ways(_cores())[DEFAULT]) if name == _LADEN else nullcontext() as trainer:
                    if trainer:
                        _skip(trainer, 1)
                    before, started = frames(), time.monotonic()
                    row = answer(name)
                    row["frames_per_s"] = (frames() - before) / (time.monotonic() - started)
                    rows.append(row)
            before, started = frames(), time.monotonic()
            time.sleep(seconds)
            rows.append(
                {"way": "three videos alone", "frames_per_s": (frames() - before) / (time.monotonic() - started)}
            )
        rows.append(answer(_IDLE))
    return rows


@contextmanager
def _videos(url: str, folder: Path) -> Iterator[Callable[[], int]]:
    """Start three long videos in the background, and yield a function that returns how many frames are done."""
    import av
    import numpy as np

    path = folder / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        for number in range(_FRAMES):
            pixels = np.full((240, 320, 3), number % 255, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    with Client(url) as client:
        started = [client.estimate_async("dog", video=path, locate="off").id for _ in range(3)]

        def frames() -> int:
            states = [client.estimate_job(name) for name in started]
            assert all(state.status == "running" for state in states), "a video ended; make it longer"
            return sum(state.progress.done for state in states)

        while not all(client.estimate_job(name).progress.done for name in started):
            time.sleep(0.1)
        yield frames
        for name in started:
            client.cancel_estimate(name)


def _pace(trainer: subprocess.Popen[str], seconds: float) -> float:
    """Return the steps a second, after some steps that build caches and choose threads."""
    _skip(trainer, _WARM_UP_STEPS)
    started, steps = time.monotonic(), 0
    while (now := time.monotonic()) - started < seconds or not steps:
        _skip(trainer, 1)
        steps += 1
    return steps / (now - started) if steps > 1 else 1 / (time.monotonic() - started)


def _skip(trainer: subprocess.Popen[str], steps: int) -> None:
    assert trainer.stdout
    for _ in range(steps):
        if not trainer.stdout.readline():
            raise RuntimeError("the training process ended")


@contextmanager
def _training(way: Way) -> Iterator[subprocess.Popen[str]]:
    """Start the processes of one way; rank 0 prints a line a step."""
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__, "--train",
                 json.dumps({**asdict(way), "rank": rank, "meeting": f"file://{folder}/meeting"})],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(way.processes)
        ]  # fmt: skip
        try:
            yield started[0]
        finally:
            for process in started:
                process.kill()
            for process in started:
                process.wait()


def _train(order: dict[str, int | str]) -> None:
    """Train until the process is killed."""
    os.nice(int(order["nice"]))
    if hasattr(os, "SCHED_BATCH"):  # as the worker does
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    threads = int(order["threads"]) or _cores()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import numpy as np
    import torch

    from model.config import resolve
    from model.process_group import ALONE
    from model.training.distributed import join_group
    from model.training.trainer import Trainer
    from worker.training.training_run import ThreadChoice

    torch.set_num_threads(threads)
    config = resolve("compact", {"steps": str(_STEPS)})
    side = config.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (256, side, side, 3), dtype=np.uint8)

    def steps(trainer: Trainer) -> None:
        choice = None if order["threads"] else ThreadChoice(threads)
        for report in trainer.run():
            if choice:
                choice.mark(report.step)
            if not order["rank"]:
                print(report.step, flush=True)

    if order["processes"] == 1:
        steps(Trainer(pictures, config, "cpu", group=ALONE))
    else:
        with join_group("cpu", int(order["rank"]), int(order["processes"]), str(order["meeting"])) as group:
            steps(Trainer(pictures, config, "cpu", group=group))


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    started = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(count)]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


def _spin() -> None:
    number = 1
    while True:
        number = number * 3 % 1_000_003


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the ways compared and the duration."""
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each turn")
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 3], help="numbers of busy processes")
    parser.add_argument("--ways", nargs="+", help="compare these only")
    parser.add_argument("--no-estimates", dest="estimates", action="store_false")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        _train(json.loads(sys.argv[2]))
    else:
        sys.exit(run(measure, add_arguments))
