"""Third-party models to compare with; their licences may forbid publishing them, so they stay outside the project.

``--peer PATH`` names a Python file with one function

    build(batch, side, num_keypoints, perceptual_weights, device) -> peer

where ``perceptual_weights`` is the path of a file of VGG16's weights in torchvision's key names. A peer has

    name                              its name in the tables
    train_step(images)                one whole optimisation step on that batch
    keypoints(images, refine_steps)   keypoints (B, K, 2); NotImplementedError if it can't refine

with images float (B, 3, S, S) in [-1, 1] on the device. The file must provide everything it needs besides torch.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Peer(Protocol):
    """A third-party model; see the module docstring."""

    name: str

    def train_step(self, images: Tensor) -> object:
        """Take one optimisation step on a batch."""

    def keypoints(self, images: Tensor, refine_steps: int = 0) -> Tensor:
        """Return the keypoints (B, K, 2)."""


class PeerError(ValueError):
    """The file of --peer is not valid; the message names the missing part."""


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the peer, and of the perceptual weights that it shares with ours."""
    parser.add_argument("--peer", type=Path, help="Python file of a peer; see benchmarks/speed/peers.py")
    parser.add_argument("--perceptual-weights", type=Path, help="file of VGG16's weights; downloaded unless given")


def load_peer(
    path: Path, batch: int, side: int, num_keypoints: int, perceptual_weights: Path | None, device: torch.device
) -> Peer:
    """Build the peer of a file. The caller seeds the random numbers.

    Raises:
        PeerError: no such file, or no ``build`` in it.
    """
    if not path.is_file():
        raise PeerError(f"--peer is {path}; expected a Python file")
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise PeerError(f"--peer is {path}; expected a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "build"):
        raise PeerError(f"{path} has no function build; expected the functions that benchmarks/speed/peers.py lists")
    peer: Peer = module.build(batch, side, num_keypoints, perceptual_weights, device)
    return peer


def random_images(batch: int, side: int, device: torch.device) -> Tensor:
    """Return a batch of noise (B, 3, S, S) in [-1, 1]; the time does not depend on the content."""
    return (torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(device)
