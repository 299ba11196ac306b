"""A version on disk: weights, settings, prior, memory and history of a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.data import Images, iterate_batches, to_tensor
from model.network.device import autocast
from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import NoMemoryError
from model.network.surprise import recall_all, surprise_scale

from . import tensor_files
from .history import History, Snapshot
from .prior import PosePrior, prototypes

_NO_MEMORY: dict[str, Any] = {
    "num_banks": 0,
    "bank_size": 0,
    "token_dim": 0,
    "use_counts": [],
    "prototypes": [],
    "surprise_scale": None,
}


def write_version(
    directory: Path,
    model: PosePriorLearner,
    images: Images,
    history: History,
    *,
    step: int,
    keypoint_names: tuple[str, ...] | None = None,
) -> None:
    """Write weights.safetensors, config.json, prior.json, memory.json and history.json.

    Args:
        directory: an existing, empty directory.
        model: put into eval mode.
        images: the training pictures, uint8 (N, S, S, 3).
        history: of the run so far.
        step: steps trained.
        keypoint_names: K names; numbered where not given.
    """
    model.eval()
    tensor_files.save(directory / "weights.safetensors", model.state_dict(), {"step": step})
    tensor_files.save_json(directory / "config.json", model.config.to_dict())
    pose = mean_pose(model, images) if model.memory is None else None
    prior = PosePrior.of(model, keypoint_names, mean_pose=pose)
    tensor_files.save_json(directory / "prior.json", prior.to_json())
    tensor_files.save_json(directory / "memory.json", _memory(model, images))
    tensor_files.save_json(directory / "history.json", history.to_json(Snapshot.of(model, step)))


def codes(model: PosePriorLearner, images: Images, batch_size: int = 64) -> Tensor:
    """The memory's codes (N, M) of pictures, uint8 (N, S, S, 3).

    Raises:
        NoMemoryError: the model has no memory.
    """
    if model.memory is None:
        raise NoMemoryError(f"a model of the method {model.config.method} has no memory, and no codes")
    return recall_all(model.memory, _located(model, images, batch_size))[0]


def mean_pose(model: PosePriorLearner, images: Images, batch_size: int = 64) -> Tensor:
    """The mean of the poses in pictures, (K, 2) in units of [-1, 1]."""
    total = torch.zeros(model.config.num_keypoints, 2, dtype=torch.float64)
    for keypoints in _located(model, images, batch_size):
        total += keypoints.double().sum(0).cpu()
    return (total / len(images)).float()


@torch.no_grad()
def _located(model: PosePriorLearner, images: Images, batch_size: int = 64) -> Iterator[Tensor]:
    """The keypoints (B, K, 2) of all pictures, a batch at a time, by the model as it is."""
    model.eval()
    device = model.link_logits.device
    for batch in iterate_batches(images, batch_size):
        with autocast(model.config.precision, device):
            keypoints = model.locate(to_tensor(batch, device)).keypoints
        yield keypoints


def _memory(model: PosePriorLearner, images: Images) -> dict[str, Any]:
    """memory.json."""
    if model.memory is None:
        return _NO_MEMORY
    config = model.config
    found, distances = recall_all(model.memory, _located(model, images))
    return {
        "num_banks": config.num_banks,
        "bank_size": config.bank_size,
        "token_dim": config.token_dim,
        "use_counts": model.memory.use_counts.tolist(),
        "prototypes": [
            {"keypoints": pose.keypoints.tolist(), "codes": pose.codes.tolist(), "count": pose.count}
            for pose in prototypes(model, found)
        ],
        "surprise_scale": surprise_scale(distances),
    }
