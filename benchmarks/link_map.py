"""The link map, forward and backward, against eq. 3 written out literally; both in this run.

python -m benchmarks.link_map [--json] [--batch 8] [--side 128] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.links import link_map, link_map_literal

BAR = 30.0
LinkMap = Callable[[Tensor, Tensor, float, int], Tensor]


def measure(draw: LinkMap, batch: int, side: int, device: torch.device, repeats: int) -> float:
    """Median seconds of one forward and backward pass, K = 16, link width 1e-3."""
    generator = torch.Generator().manual_seed(0)
    keypoints = (torch.rand(batch, 16, 2, generator=generator) * 1.6 - 0.8).to(device).requires_grad_()
    weights = torch.rand(120, generator=generator).to(device).requires_grad_()
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        draw(keypoints, weights, 1e-3, side).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])  # the first warms up


def compare(batch: int, side: int, device: torch.device) -> dict[str, Any]:
    """Both forms, one after the other, twice; the medians and their ratio."""
    ours, literal = [], []
    for _ in range(2):
        ours.append(measure(link_map, batch, side, device, repeats=10))
        literal.append(measure(link_map_literal, batch, side, device, repeats=2))
    fast, slow = statistics.median(ours), statistics.median(literal)
    return {"batch": batch, "side": side, "ours_s": fast, "literal_s": slow, "ratio": slow / fast}


def main() -> int:
    """Print the comparison; the exit code is 1 where it misses the bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link_map", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    row = compare(options.batch, options.side, torch.device(options.device))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    result = {"subject": "link_map", "rows": [row], "ratio": row["ratio"], "bar": BAR, "holds": row["ratio"] >= BAR}
    if options.json:
        print(json.dumps({**result, "machine": machine}))
        return int(not result["holds"])
    print(f"link map, forward + backward, B={row['batch']}, K=16, {row['side']}x{row['side']} ({machine})")
    print(f"  literal eq. 3  {row['literal_s'] * 1e3:9.1f} ms")
    print(f"  ours           {row['ours_s'] * 1e3:9.1f} ms   {row['ratio']:.0f} times faster (bar: {BAR:.0f})")
    return int(not result["holds"])


if __name__ == "__main__":
    sys.exit(main())
