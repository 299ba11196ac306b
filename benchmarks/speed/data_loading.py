"""Compare the loading of a training batch with its step: the device should hardly ever wait.

python -m benchmarks.speed.data_loading [--json] [--device auto] [--presets compact paper] [--pictures 4000]

Batches are read as a training worker reads them, from a memory map, and shuffled over more pictures than fit in the
processor's cache; what runs before the first convolution is counted: reading, mirroring, tensors, masks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from model.config import PPLConfig, resolve
from model.data import Images, mask_patches, step_generator, to_tensor
from model.training.trainer import Trainer

from .report import Check, Report, Row, run
from .timing import add_torch_arguments, device_of, time_in_turns

WAIT_BAR = 0.05


class Feed:
    """A trainer's steps, and separately the loading of their batches."""

    def __init__(self, pictures: Images, config: PPLConfig, device: torch.device, weights: Path | None) -> None:
        self.trainer = Trainer(pictures, config, str(device), weights)

    def step(self) -> None:
        """Run a whole step, its batch included."""
        self.trainer.train_step()
        self.trainer.step += 1

    def load(self) -> None:
        """Load the batch of the next step, and its reference."""
        trainer, config = self.trainer, self.trainer.config
        trainer.step += 1
        image = to_tensor(trainer.batches.at(trainer.step), trainer.device)
        generator = step_generator(config.seed, "mask", trainer.step)
        mask_patches(image, config.mask_ratio, config.mask_grid, generator)


def one(preset: str, options: argparse.Namespace, device: torch.device, folder: Path) -> Row:
    """Measure loading and step of a preset in turn, and the share of the step that the device waits for its batch."""
    changes = {"perceptual": options.perceptual} if options.perceptual else {}
    config = resolve(preset, {**changes, **({"batch_size": options.batch} if options.batch else {})})
    shape = (options.pictures, config.image_size, config.image_size, 3)
    file = folder / f"{preset}.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    feed = Feed(np.load(file, mmap_mode="r"), config, device, options.perceptual_weights)
    seconds = time_in_turns({"load": feed.load, "step": feed.step}, options.repeats, device)
    return {
        "preset": preset,
        "batch": config.batch_size,
        "load_ms": 1e3 * seconds["load"],
        "step_ms": 1e3 * seconds["step"],
        "waits": seconds["load"] / seconds["step"],
    }


def measure(options: argparse.Namespace) -> Report:
    """Measure each preset; the ratio is the smallest quotient of the times of a step and of loading."""
    device = device_of(options)
    with tempfile.TemporaryDirectory() as folder:
        rows = [one(preset, options, device, Path(folder)) for preset in options.presets]
    waits = max(row["waits"] for row in rows)
    return Report(
        "data_loading",
        f"getting a batch ready against the step that it feeds, from a memory map, on {device}",
        rows,
        ratio=1 / waits,
        bar=1 / WAIT_BAR,
        checks=[Check("share of the time that the device waits", waits, WAIT_BAR, at_least=False)],
        notes=["ratio: a step's time over the time that getting its batch ready takes of it"],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the training and its pictures."""
    parser.add_argument("--presets", nargs="+", default=["compact", "paper"], choices=["compact", "paper"])
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--batch", type=int, help="pictures a step; the preset's unless given")
    parser.add_argument(
        "--perceptual", default="efficientnet_lite0", help="needs no download; a larger one makes steps longer"
    )
    parser.add_argument("--perceptual-weights", type=Path, help="a local file of the perceptual network's weights")
    add_torch_arguments(parser, repeats=3)


if __name__ == "__main__":
    sys.exit(run(measure, add_arguments))
