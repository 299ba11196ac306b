"""Measure how long gateway and worker take to become ready, and their memory then.

python -m benchmarks.speed.start [--json] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from .report import Check, Report, Row, run
from .stack import Stack

GATEWAY_S, WORKER_S, GATEWAY_MB = 2.0, 8.0, 150.0


def measure(options: argparse.Namespace) -> Report:
    """Measure each part, the worker first; medians over the rounds, each with an empty data folder."""
    seconds: dict[str, list[float]] = {}
    megabytes: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
            resident = stack.resident_mb()
            for name, taken in stack.ready_s.items():
                part = name.partition("-")[0]
                seconds.setdefault(part, []).append(taken)
                megabytes.setdefault(part, []).append(resident[name])
    rows: list[Row] = [
        {
            "part": part,
            "ready_s": statistics.median(taken),
            "slowest_s": max(taken),
            "resident_mb": statistics.median(megabytes[part]),
        }
        for part, taken in seconds.items()
    ]
    by_part = {row["part"]: row for row in rows}
    return Report(
        "start",
        "from the start of a process until it is ready, and its memory then",
        rows,
        checks=[
            Check("gateway ready, s", by_part["gateway"]["ready_s"], GATEWAY_S, at_least=False),
            Check("worker ready, s", by_part["worker"]["ready_s"], WORKER_S, at_least=False),
            Check("gateway resident, MB", by_part["gateway"]["resident_mb"], GATEWAY_MB, at_least=False),
        ],
        notes=["ready: a gateway answers /livez, a worker has written its first heartbeat; files in the page cache"],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of the rounds."""
    parser.add_argument("--rounds", type=int, default=3)


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))
