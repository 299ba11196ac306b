"""Measure the pace of training beside busy processes, and the latency of estimates meanwhile.

python -m benchmarks.speed.contention [--json] [--seconds 15] [--busy 0 1 3] [--ways NAME …] [--no-estimates]

The ways of training take turns beside each number of busy processes (endless loops at nice 0). The ratio is that of
the worker's default: its pace beside one busy process divided by its idle pace. Estimates: one client in a closed
loop, idle and while the way trains.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from .load import Load, closed_loop, post
from .photos import photos, upload
from .report import Check, Report, Row, run
from .stack import Stack

ONE_BAR, THREE_BAR = 0.55, 1 / 3
_WARM_UP_STEPS = 4
_START_S = 120.0
_STEPS = 1_000_000


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
    idle = max(pace.get(0, 0.0) for pace in paces.values())
    for name, pace in paces.items():
        row: Row = {"way": name, **{f"steps_per_s beside {busy}": value for busy, value in pace.items()}}
        rows.append({**row, **{f"of idle, beside {busy}": value / pace[0] for busy, value in pace.items() if busy}})
    report = Report("contention", f"training (compact) beside busy processes on {_cores()} cores", rows)
    default = paces.get(DEFAULT, {})
    if {0, 1} <= default.keys():
        report.ratio, report.bar = default[1] / default[0], ONE_BAR
        report.checks.append(Check("idle pace, of the fastest way's", default[0] / idle, 0.9))
    if {0, 3} <= default.keys():
        report.checks.append(Check("beside three busy processes, of idle", default[3] / default[0], THREE_BAR))
    if options.estimates:
        rows += _estimates(compared, options.seconds)
    return report


def _estimates(compared: dict[str, Way], seconds: float) -> list[Row]:
    requests = [post("/estimate", *upload("dog", photo)) for photo in photos(8)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:

        def answer(name: str) -> Row:
            closed_loop(stack.urls, requests, 1, 1.0)
            load: Load = closed_loop(stack.urls, requests, 1, seconds)
            return {"way": f"estimates, {name}", "p50_ms": load.ms(50), "p95_ms": load.ms(95)}

        rows.append(answer("idle"))
        for name, way in compared.items():
            with _training(way) as trainer:
                _skip(trainer, _WARM_UP_STEPS)
                rows.append(answer(f"beside training: {name}"))
    return rows


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
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 3], help="numbers of busy processes")
    parser.add_argument("--ways", nargs="+", help="compare these only")
    parser.add_argument("--no-estimates", dest="estimates", action="store_false")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        _train(json.loads(sys.argv[2]))
    else:
        sys.exit(run(measure, add_arguments))
