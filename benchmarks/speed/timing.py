"""Measure times that can be compared on a shared machine: contestants take turns, and the median counts."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from model.network.blocks import pick_device


def time_in_turns(
    contestants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | None = None, warm_up: int = 1
) -> dict[str, float]:
    """Return the median seconds of a call of each contestant; rounds alternate in direction.

    A load that slows the machine for a while slows all contestants.

    Args:
        repeats: number of rounds.
        device: a CUDA device is synchronised before the clock is read.
        warm_up: calls of each before the first round.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        for _ in range(warm_up):
            contestant()
    order = list(contestants)
    for _ in range(repeats):
        for name in order:
            _wait_for(device)
            started = time.perf_counter()
            contestants[name]()
            _wait_for(device)
            taken[name].append(time.perf_counter() - started)
        order.reverse()
    return {name: statistics.median(values) for name, values in taken.items()}


def add_torch_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Add the options of the device, the threads and the repeats."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="torch threads; leave out cores that other programs keep busy")
    parser.add_argument("--repeats", type=int, default=repeats, help="number of rounds; the median counts")


def device_of(options: argparse.Namespace) -> torch.device:
    """Return the device of the arguments, and set torch's number of threads."""
    if options.threads:
        torch.set_num_threads(options.threads)
    return pick_device(options.device)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that the given percentage of the values do not exceed. Needs at least one value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
