"""Compare the link map, forward and backward, with eq. 3 written literally: (B, L, P, 2) tensors, one exp a link.

python -m benchmarks.speed.link_map [--json] [--batches 8 16] [--side 128] [--device cpu] [--threads 1] [--repeats 5]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from model.network.links import link_map, link_map_literal

from .memory import MovedBytes, copy_bytes_per_s, peak_bytes
from .report import Check, Report, Row, run
from .timing import add_torch_arguments, device_of, time_in_turns

BAR, GPU_BAR = 40.0, 10.0
MEMORY_BAR = 20.0
NUM_KEYPOINTS, LINK_WIDTH = 16, 1e-3

LinkMap = Callable[[Tensor, Tensor, float, int], Tensor]


def passes(draw: LinkMap, batch: int, side: int, device: torch.device) -> Callable[[], None]:
    """Return a function that runs one forward and backward pass of random poses and weights."""
    generator = torch.Generator().manual_seed(0)
    keypoints = (torch.rand(batch, NUM_KEYPOINTS, 2, generator=generator) * 1.6 - 0.8).to(device).requires_grad_()
    num_links = NUM_KEYPOINTS * (NUM_KEYPOINTS - 1) // 2
    weights = torch.rand(num_links, generator=generator).to(device).requires_grad_()

    def both_ways() -> None:
        keypoints.grad = weights.grad = None
        draw(keypoints, weights, LINK_WIDTH, side).sum().backward()

    return both_ways


def compare(batch: int, side: int, device: torch.device, repeats: int, copied_per_s: float) -> Row:
    """Measure both forms in turn: time, memory, and the bytes that ours moves."""
    forms = {"ours": link_map, "literal": link_map_literal}
    works = {name: passes(draw, batch, side, device) for name, draw in forms.items()}
    seconds = time_in_turns(works, repeats, device)
    memory = {name: peak_bytes(work, device) for name, work in works.items()}
    with MovedBytes() as moved:
        works["ours"]()
    return {
        "batch": batch,
        "side": side,
        "ours_ms": 1e3 * seconds["ours"],
        "literal_ms": 1e3 * seconds["literal"],
        "ratio": seconds["literal"] / seconds["ours"],
        "ours_mib": memory["ours"] / 2**20,
        "literal_mib": memory["literal"] / 2**20,
        "memory_ratio": memory["literal"] / memory["ours"],
        "moved_mib": moved.count / 2**20,
        "of_copy_bandwidth": moved.count / seconds["ours"] / copied_per_s,
    }


def measure(options: argparse.Namespace) -> Report:
    """Measure every batch size; the ratio is the smallest."""
    device = device_of(options)
    one = partial(compare, device=device, repeats=options.repeats, copied_per_s=copy_bytes_per_s(device))
    rows = [one(batch, options.side) for batch in options.batches]
    return Report(
        "link_map",
        f"link map, forward + backward, K={NUM_KEYPOINTS}, against eq. 3 written out literally, on {device}",
        rows,
        ratio=min(row["ratio"] for row in rows),
        bar=GPU_BAR if device.type == "cuda" else BAR,
        checks=[Check("memory of the literal form / ours", min(row["memory_ratio"] for row in rows), MEMORY_BAR)],
        notes=["moved_mib counts what each operation reads and writes; in a cache it costs less than a copy does"],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the sizes, and those of every subject with torch."""
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--side", type=int, default=128)
    add_torch_arguments(parser, repeats=5)


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))
