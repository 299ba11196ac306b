"""Write a version: weights, settings, prior, memory and history of a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.data import Images, iterate_batches, to_tensor
from model.network.device import autocast
from model.network.pose_prior_learner import PosePriorLearner
from model.network.surprise import recall_all, surprise_scale

from .history import History, Snapshot
from .prior import PosePrior, prototypes
from .tensor_files import save, save_json

_BATCH_SIZE = 64


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
        step: number of steps trained.
        keypoint_names: K names; numbers unless given.
    """
    model.eval()
    save(directory / "weights.safetensors", model.state_dict(), {"step": step})
    save_json(directory / "config.json", model.config.to_dict())
    pose = _mean_pose(model, images) if model.memory is None else None
    prior = PosePrior.from_model(model, keypoint_names, mean_pose=pose)
    save_json(directory / "prior.json", prior.to_json())
    save_json(directory / "memory.json", _memory(model, images))
    save_json(directory / "history.json", history.to_json(Snapshot.from_model(model, step)))


def _mean_pose(model: PosePriorLearner, images: Images) -> Tensor:
    total = torch.zeros(model.config.num_keypoints, 2, dtype=torch.float64)
    for keypoints in _locate_all(model, images):
        total += keypoints.double().sum(0).cpu()
    return (total / len(images)).float()


def _memory(model: PosePriorLearner, images: Images) -> dict[str, Any]:
    if model.memory is None:
        sizes = {"num_banks": 0, "bank_size": 0, "token_dim": 0}
        return {**sizes, "use_counts": [], "prototypes": [], "surprise_scale": None}
    codes, distances = recall_all(model.memory, _locate_all(model, images))
    return {
        "num_banks": model.config.num_banks,
        "bank_size": model.config.bank_size,
        "token_dim": model.config.token_dim,
        "use_counts": model.memory.use_counts.tolist(),
        "prototypes": prototypes(model, codes),
        "surprise_scale": surprise_scale(distances),
    }


@torch.no_grad()
def _locate_all(model: PosePriorLearner, images: Images) -> Iterator[Tensor]:
    """Yield the keypoints (B, K, 2) of all pictures, a batch at a time."""
    device = model.link_logits.device
    for batch in iterate_batches(images, _BATCH_SIZE):
        with autocast(model.config.precision, device):
            keypoints = model.locate(to_tensor(batch, device)).keypoints
        yield keypoints
