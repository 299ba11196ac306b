"""Compare a training step of the preset paper with a peer's on the same batch, perceptual network and input size.

python -m benchmarks.speed.train_step [--json] [--peer PATH] [--perceptual-weights FILE] [--batch 8] [--device auto]

Without --peer only our own times are reported, and no ratio.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch

from model.config import resolve
from model.network.blocks import has_fast_bf16
from model.training.trainer import Trainer

from .memory import peak_bytes
from .peers import add_peer_arguments, load_peer, random_images
from .report import Check, Report, Row, run
from .timing import add_torch_arguments, device_of, time_in_turns

AMX_BAR, CPU_BAR, GPU_BAR = 8.0, 2.0, 4.0
GPU_MEMORY_BAR = 2.0
RELEASE_SIZE = 224  # to which the release resizes images for its perceptual network, a VGG16


def our_step(options: argparse.Namespace, device: torch.device, precision: str, size: int) -> Callable[[], object]:
    """Return a function that takes one step of our trainer."""
    changes = {"perceptual": options.perceptual, "perceptual_size": size, "precision": precision}
    config = resolve(options.preset, {"batch_size": options.batch, **changes})
    pictures = np.random.default_rng(0).integers(
        0, 256, (options.batch, config.image_size, config.image_size, 3), dtype=np.uint8
    )
    trainer = Trainer(pictures, config, str(device), options.perceptual_weights)

    def step() -> None:
        trainer.train_step()
        trainer.step += 1

    return step


def contestants(options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return our steps by precision and input size of the perceptual network, and the peer's."""
    fast = "bf16" if has_fast_bf16(device) else "fp32"
    config = resolve(options.preset)
    works = {
        f"ours, {precision}, as the peer": our_step(options, device, precision, options.perceptual_size)
        for precision in dict.fromkeys((fast, "fp32"))
    }
    works[f"ours, {fast}, perceptual network at {config.perceptual_size}"] = our_step(
        options, device, fast, config.perceptual_size
    )
    if options.peer:
        side, points = config.image_size, config.num_keypoints
        peer = load_peer(options.peer, options.batch, side, points, options.perceptual_weights, device)
        images = random_images(options.batch, side, device)
        works[peer.name] = lambda: peer.train_step(images)
    return works


def measure(options: argparse.Namespace) -> Report:
    """Measure all in turn. The ratio is the peer's time / ours in the device's precision, at the peer's size."""
    device = device_of(options)
    works = contestants(options, device)
    seconds = time_in_turns(works, options.repeats, device)
    memory = {name: peak_bytes(work, device) for name, work in works.items()} if device.type == "cuda" else {}
    rows: list[Row] = [
        {"step": name, "ms": 1e3 * taken, "ms_per_picture": 1e3 * taken / options.batch}
        for name, taken in seconds.items()
    ]
    for row in rows:
        if memory:
            row["peak_mib"] = memory[row["step"]] / 2**20
    report = Report(
        "train_step",
        f"one training step, preset {options.preset}, B={options.batch}, {options.perceptual}, on {device}",
        rows,
        bar=bar_of(device),
    )
    if not options.peer:
        report.notes.append("no peer was given (--peer): no ratio")
        return report
    first, last = next(iter(works)), list(works)[-1]
    report.ratio = seconds[last] / seconds[first]
    if memory:
        report.checks.append(Check("peak memory, peer / ours", memory[last] / memory[first], GPU_MEMORY_BAR))
    plain = seconds[last] / seconds["ours, fp32, as the peer"]
    report.checks.append(Check("ratio in plain fp32", plain, CPU_BAR))
    return report


def bar_of(device: torch.device) -> float:
    """Return the smallest good ratio on a device."""
    if device.type == "cuda":
        return GPU_BAR
    return AMX_BAR if getattr(torch.cpu, "_is_amx_tile_supported", bool)() else CPU_BAR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step and the peer."""
    add_peer_arguments(parser)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--perceptual", default="vgg16", help="the peer's; efficientnet_lite0 needs no download")
    parser.add_argument("--perceptual-size", type=int, default=RELEASE_SIZE, help="the peer's input size")
    add_torch_arguments(parser, repeats=3)


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))
