"""Compare batches formed in the gateway with one picture a batch (PPL_BATCH_LIMIT=1) under the same load.

python -m benchmarks.speed.batching [--json] [--clients 16] [--seconds 3] [--rounds 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from .load import Load, closed_loop, post
from .photos import photos, upload
from .report import Check, Report, Row, run
from .stack import Stack

GPU_BAR, CPU_BAR = 3.0, 1.0
_LIMITS = {"on": "32", "off": "1"}


def measure(options: argparse.Namespace) -> Report:
    """Load both platforms in turn. On a GPU the ratio is of pictures a second, on a CPU of p95."""
    requests = [post("/estimate", *upload("dog", photo)) for photo in photos(16)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        stacks = {
            name: opened.enter_context(
                Stack(Path(folder) / name, environment={"PPL_BATCH_LIMIT": limit, "PPL_DEVICE": options.device})
            )
            for name, limit in _LIMITS.items()
        }
        loads: dict[str, Load] = {}
        for number in range(-1, options.rounds):
            order = list(stacks) if number % 2 else list(stacks)[::-1]
            for name in order:
                load = closed_loop(stacks[name].urls, requests, options.clients, options.seconds)
                if number >= 0:  # the first round warms up
                    loads[name] = loads[name] + load if name in loads else load
        sizes = {
            name: stack.read_metric("ppl_batch_pictures_sum") / stack.read_metric("ppl_batch_pictures_count")
            for name, stack in stacks.items()
        }
    rows: list[Row] = [
        {
            "batching": name,
            "pictures_per_s": loads[name].per_s,
            "p50_ms": loads[name].ms(50),
            "p95_ms": loads[name].ms(95),
            "mean_batch": sizes[name],
            "failures": sum(loads[name].failures.values()),
        }
        for name in _LIMITS
    ]
    on, off = rows
    throughput, p95 = on["pictures_per_s"] / off["pictures_per_s"], off["p95_ms"] / on["p95_ms"]
    gpu = options.device.startswith("cuda")
    return Report(
        "batching",
        f"batching on and off, {options.clients} clients, one picture a request, preset compact, on {options.device}",
        rows,
        ratio=throughput if gpu else p95,
        bar=GPU_BAR if gpu else CPU_BAR,
        checks=[Check("failed requests", on["failures"] + off["failures"], 0, at_least=False)],
        notes=[
            "ratio of " + ("pictures a second, on / off" if gpu else "p95, off / on"),
            f"pictures a second, on / off: {throughput:.3g}",
        ],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the load."""
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="device of the workers: cpu or cuda")


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))
