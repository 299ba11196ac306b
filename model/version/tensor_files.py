"""The files of a version: tensors as safetensors, replaced atomically, never pickles; everything else as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.data import Images, iterate_batches, to_tensor
from model.network.architecture import named_features
from model.network.blocks import autocast
from model.network.links import link_lengths
from model.network.memory import recall_all, surprise_scale
from model.network.pose_prior_learner import PosePriorLearner

from .prior import History, PosePrior, Snapshot, prototypes

_BATCH_SIZE = 64
_SKELETON_PICTURES = 256


class CheckpointError(ValueError):
    """A file that is damaged, or that another program or model wrote; the message says which."""


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON facts as one file, replacing an older one atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, draft, metadata={"facts": json.dumps(facts, allow_nan=False)})
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors, on the CPU, and facts that :func:`save` wrote.

    Raises:
        CheckpointError: the file was not written by :func:`save`, or is damaged.
        FileNotFoundError: there is none.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["facts"])
            return {name: opened.get_tensor(name) for name in opened.keys()}, facts  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of this program: {error}") from error


def save_json(path: Path, value: Any) -> None:
    """Write JSON; raise ValueError for NaN and infinity."""
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


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
        history: history of the run up to this step.
        step: number of steps trained.
        keypoint_names: K names; numbers unless given.
    """
    model.eval()
    save(
        directory / "weights.safetensors", model.state_dict(), {"step": step, "features": named_features(model.config)}
    )
    save_json(directory / "config.json", model.config.to_dict())
    poses = list(_locate_all(model, images))
    pose = _mean_pose(poses) if model.memory is None else None
    prior = PosePrior.from_model(model, keypoint_names, mean_pose=pose, link_lengths=_mean_lengths(poses))
    save_json(directory / "prior.json", prior.to_json())
    save_json(directory / "memory.json", _memory(model, poses))
    save_json(directory / "history.json", history.to_json(Snapshot.from_model(model, step)))


def check_features(model: PosePriorLearner, facts: Mapping[str, Any]) -> None:
    """Check that a version's weights were trained with the frozen network that the model has.

    Raises:
        CheckpointError: they were trained with another one, or with other weights of it.
    """
    named, own = facts.get("features"), named_features(model.config)
    if named != own:
        raise CheckpointError(f"the version was trained with the features {named}; this release has {own}")


def _mean_pose(poses: list[Tensor]) -> Tensor:
    return torch.cat(poses).double().mean(0).float().cpu()


def _mean_lengths(poses: list[Tensor]) -> Tensor:
    """Return the mean length of each link (L,) over some of the poses."""
    joined = torch.cat(poses)
    chosen = torch.linspace(0, len(joined) - 1, min(_SKELETON_PICTURES, len(joined))).round().long()
    return link_lengths(joined[chosen.to(joined.device)]).float().mean(0)


def _memory(model: PosePriorLearner, poses: list[Tensor]) -> dict[str, Any]:
    if model.memory is None:
        sizes = {"num_banks": 0, "bank_size": 0, "token_dim": 0}
        return {**sizes, "use_counts": [], "prototypes": [], "surprise_scale": None}
    codes, distances = recall_all(model.memory, poses)
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
