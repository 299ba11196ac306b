"""Models of others that ours is measured against; they are not ours to publish, so each stays in a file elsewhere.

``--peer PATH`` names a Python file with one function

    build(batch, side, num_keypoints, perceptual_weights, device) -> peer

where ``perceptual_weights`` is the path of a file of VGG16's weights in torchvision's key names. A peer has

    name                              what a table calls it
    train_step(images)                one whole optimisation step on that batch
    keypoints(images, refine_steps)   keypoints (B, K, 2); steps of refinement that it has not raise NotImplementedError

with images float (B, 3, S, S) in [-1, 1] on the device. Whatever it needs beside torch it brings along.
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
        """One optimisation step on a batch."""

    def keypoints(self, images: Tensor, refine_steps: int = 0) -> Tensor:
        """Keypoints (B, K, 2)."""


class PeerError(ValueError):
    """The file of --peer is not valid; the message says what is missing."""


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    """Which peer, if any, and the perceptual weights that it shares with ours."""
    parser.add_argument(
        "--peer", type=Path, help="Python file of a peer; benchmarks/speed/peers.py says what it must have"
    )
    parser.add_argument("--perceptual-weights", type=Path, help="file of VGG16's weights; downloaded unless given")


def load_peer(
    path: Path, batch: int, side: int, num_keypoints: int, perceptual_weights: Path | None, device: torch.device
) -> Peer:
    """Build the peer of a file. Random numbers are the caller's to seed.

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
        raise PeerError(f"{path} has no function build; benchmarks/speed/peers.py says what a peer must have")
    peer: Peer = module.build(batch, side, num_keypoints, perceptual_weights, device)
    return peer


def random_images(batch: int, side: int, device: torch.device) -> Tensor:
    """A batch of noise, (B, 3, S, S) in [-1, 1]: what it shows makes no difference to the time."""
    return (torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(device)
