"""Compare one gateway and inference worker with two of each: requests lost or doubled, pictures a second, CPU time.

python -m benchmarks.speed.scale_out [--json] [--clients 32] [--seconds 4] [--rounds 2]

Each photograph has a different width, which its response contains, so swapped responses would be noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from service.contract.routing import HEARTBEAT_EVERY_S

from .load import Load, closed_loop, post
from .photos import WIDTH, photos, upload
from .report import Check, Report, Row, run
from .stack import Stack

BAR = 1.7
CORES = 6  # from here on two of each, and the load, have cores of their own
_PHOTOS = 16
_BEAT_S = 2 * HEARTBEAT_EVERY_S  # workers' figures come with their heartbeats


def wrong(number: int, body: bytes) -> str | None:
    """Return what is wrong with the response to a photograph, if anything."""
    images = json.loads(body)["images"]
    if len(images) != 1:
        return f"{len(images)} poses for one picture"
    return None if images[0]["width"] == WIDTH + number else "the answer of another request"


def measure(options: argparse.Namespace) -> Report:
    """Measure both. The ratio is of pictures a second, two of each / one; its bar needs enough cores."""
    requests = [post("/estimate", *upload("dog", photo)) for photo in photos(_PHOTOS)]
    loads: dict[int, Load] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        # one thread each, so that a second process adds something that more threads in the first do not
        environment = {"PPL_DEVICE": options.device, "PPL_INFERENCE_THREADS": "1"}
        stacks = {
            count: opened.enter_context(
                Stack(Path(folder) / str(count), workers=count, gateways=count, environment=environment)
            )
            for count in (1, 2)
        }
        for stack in stacks.values():  # warm up, which is not counted
            closed_loop(stack.urls, requests, options.clients, min(1.0, options.seconds))
        time.sleep(_BEAT_S)
        before = {
            count: (stack.cpu_s(), stack.read_metric("ppl_inference_images_total", relayed=True))
            for count, stack in stacks.items()
        }
        for number in range(options.rounds):
            for count in (1, 2) if number % 2 else (2, 1):
                load = closed_loop(stacks[count].urls, requests, options.clients, options.seconds, wrong)
                loads[count] = loads[count] + load if count in loads else load
        time.sleep(_BEAT_S)
        rows: list[Row] = []
        for count, stack in stacks.items():
            load = loads[count]
            cpu = {name: taken - before[count][0][name] for name, taken in stack.cpu_s().items()}
            row: Row = {
                "of_each": count,
                "pictures_per_s": load.per_s,
                "p95_ms": load.ms(95),
                "sent": load.sent,
                "answered": len(load.latencies_s),
                "estimated": stack.read_metric("ppl_inference_images_total", relayed=True) - before[count][1],
            }
            for name, taken in cpu.items():
                row[f"{name}_cpu_ms_a_picture"] = 1e3 * taken / max(1, len(load.latencies_s))
            rows.append(row)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lost = sum(load.sent - len(load.latencies_s) for load in loads.values())
    return Report(
        "scale_out",
        f"one gateway and worker against two of each, {options.clients} clients, on {options.device}",
        rows,
        ratio=loads[2].per_s / loads[1].per_s,
        bar=BAR if cores >= CORES else None,
        checks=[
            Check("requests without their answer", lost, 0, at_least=False),
            Check(
                "pictures estimated beyond those asked for",
                sum(row["estimated"] - row["sent"] for row in rows),
                0,
                at_least=False,
            ),
        ],
        notes=[
            "ratio of pictures/s, two of each / one"
            + ("" if cores >= CORES else f"; its bar needs {CORES} cores, here are {cores}"),
            "cpu columns: processor time of each process for a picture answered; the cost of an added process is the "
            "difference between the sums",
        ],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the load."""
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))
