"""Times that can be compared on a machine that others use too: contestants take turns, and medians are taken."""

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

    What slows the machine for a while then slows all of them.

    Args:
        repeats: rounds that count.
        device: a CUDA device is waited for before the clock is read.
        warm_up: calls of each beforehand that do not count.
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
    """Where tensors are worked on, by how many threads, and how often."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="of torch; where other programs keep cores busy, leave these out")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds, of which medians are taken")


def device_of(options: argparse.Namespace) -> torch.device:
    """The device of these arguments; torch takes their number of threads."""
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
