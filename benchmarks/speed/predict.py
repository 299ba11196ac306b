"""Compare keypoint estimation, without refinement and with three steps, preset paper, with a peer's.

python -m benchmarks.speed.predict [--json] [--peer PATH] [--batch 16] [--device auto]

Without --peer only our own rates are reported, and no ratio. The share of the device's bf16 rate counts the
multiplications of the model against those of a large matrix product in the same run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import resolve
from model.network.pose_prior_learner import PosePriorLearner
from model.predictor import Predictor

from .peers import Peer, add_peer_arguments, load_peer, random_images
from .report import Report, Row, run
from .timing import add_torch_arguments, device_of, time_in_turns

CPU_BAR = 6.0
REFINE_STEPS = (0, 3)
_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}


def flops_of(work: Callable[[], object]) -> int:
    """Return the multiplications and additions of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matrix_product(device: torch.device) -> Callable[[], object]:
    """Return a function that multiplies large bf16 matrices, at nearly the device's best rate."""
    side = _PRODUCT_SIDE.get(device.type, _PRODUCT_SIDE["cpu"])
    a = torch.randn(side, side, device=device).bfloat16()
    return lambda: a @ a


def measure(options: argparse.Namespace) -> Report:
    """Measure ours and the peer's in turn. The ratio is the smaller of those without and with refinement."""
    device = device_of(options)
    config = resolve(options.preset)
    torch.manual_seed(0)
    model = PosePriorLearner(config)
    model.freeze()  # as a version that is read from disk
    predictor = Predictor(model, str(device))
    shape = (options.batch, config.image_size, config.image_size, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    works: dict[str, Callable[[], object]] = {
        f"ours, refine {steps}": (lambda steps=steps: predictor.predict(pictures, steps)) for steps in REFINE_STEPS
    }
    flops = {name: flops_of(work) for name, work in works.items()}
    if options.peer:
        peer = load_peer(options.peer, *shape[:2], config.num_keypoints, options.perceptual_weights, device)
        images = random_images(*shape[:2], device)
        for steps in REFINE_STEPS:
            if _does(peer, images, steps):
                works[f"{peer.name}, refine {steps}"] = lambda steps=steps: peer.keypoints(images, steps)
    product = matrix_product(device)
    seconds = time_in_turns({**works, "product": product}, options.repeats, device)
    rate = flops_of(product) / seconds.pop("product")
    rows: list[Row] = [
        {
            "keypoints": name,
            "ms": 1e3 * taken,
            "pictures_per_s": options.batch / taken,
            "gflop": flops[name] / 1e9 if name in flops else None,
            "of_bf16_rate": flops[name] / taken / rate if name in flops else None,
        }
        for name, taken in seconds.items()
    ]
    report = Report(
        "predict",
        f"keypoints of a batch, preset {options.preset}, B={options.batch}, on {device}",
        rows,
        bar=None if device.type == "cuda" else CPU_BAR,
        notes=[f"bf16 rate of a large matrix product here: {rate / 1e12:.3g} Tflop/s"],
    )
    if not options.peer:
        report.notes.append("no peer was given (--peer): no ratio")
        return report
    ratios = {
        steps: seconds[f"{peer.name}, refine {steps}"] / seconds[f"ours, refine {steps}"]
        for steps in REFINE_STEPS
        if f"{peer.name}, refine {steps}" in seconds
    }
    report.ratio = min(ratios.values(), default=None)
    missing = [str(steps) for steps in REFINE_STEPS if steps not in ratios]
    if missing:
        report.notes.append(f"{peer.name} does not refine: no ratio for {', '.join(missing)} steps")
    return report


def _does(peer: Peer, images: torch.Tensor, steps: int) -> bool:
    try:
        peer.keypoints(images, steps)
    except NotImplementedError:
        return False
    return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the batch and the peer."""
    add_peer_arguments(parser)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--preset", default="paper")
    add_torch_arguments(parser, repeats=5)


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))
