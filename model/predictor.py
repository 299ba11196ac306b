"""Poses in new pictures, from a version on disk; speaks numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import PPLConfig
from model.data import Images, to_tensor
from model.network.device import autocast, channels_last, pick_device
from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import NoMemoryError, refine
from model.network.surprise import recall
from model.version import tensor_files
from model.version.prior import PosePrior

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """Poses of a batch of squares.

    Attributes:
        keypoints: float32 (N, K, 2) as (x, y), the square being [-1, 1]; a keypoint may lie outside.
        scores: float32 (N, K) in [0, 1]: the share of a keypoint's attention that lies near it.
        trajectory: float32 (N, T + 1, K, 2), the pose after each of T refinement steps, the first unrefined.
        link_map: uint8 (N, S, S), the links drawn between the keypoints, 255 at the strongest; None unless asked for.
        surprises: float32 (N,), how far the unrefined pose lies from what the memory makes of it: 1 at the 99th
            percentile of the training pictures. None without a memory, or of a version without that scale.
        codes: uint16 (N, M), the vector of each memory bank nearest to the unrefined pose; None unless asked for.
    """

    keypoints: Array
    scores: Array
    trajectory: Array
    link_map: NDArray[np.uint8] | None
    surprises: Array | None = None
    codes: NDArray[np.uint16] | None = None


class Predictor:
    """A trained model, ready to estimate poses.

    Args:
        model: put into eval mode and moved to the device.
        device: "auto", "cpu", "cuda" or a torch device name.
        surprise_scale: the distance to the memory that counts as a surprise of 1; None where it was not measured.

    Attributes:
        prior: what the model has learned; None for AutoLink, which has no keypoint prior (the prior.json of its
            versions holds the mean pose of the training pictures instead).
    """

    def __init__(self, model: PosePriorLearner, device: str = "auto", surprise_scale: float | None = None) -> None:
        self.device = pick_device(device)
        self.config = model.config
        self.model = channels_last(model, self.device).eval()
        self.prior = None if model.config.method == "autolink" else PosePrior.of(self.model)
        self._surprise_scale = surprise_scale
        self._strongest = float(self.model.link_weights.detach().max())

    @classmethod
    def load(cls, directory: Path, device: str = "auto") -> Predictor:
        """Read a version: config.json and weights.safetensors in a directory, and of its memory.json the scale.

        Raises:
            FileNotFoundError: one of them is missing.
            CheckpointError: settings or weights are damaged, or of another model or a later release.
        """
        try:
            config = PPLConfig.from_dict(tensor_files.load_json(directory / "config.json"))
        except ValueError as error:
            raise tensor_files.CheckpointError(f"the settings in {directory} can't be read: {error}") from error
        weights, _ = tensor_files.load(directory / "weights.safetensors")
        model = PosePriorLearner(config)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise tensor_files.CheckpointError(f"{directory} holds the weights of another model: {error}") from error
        model.freeze()
        return cls(model, device, _surprise_scale(directory / "memory.json"))

    @torch.inference_mode()
    def predict(
        self, images: Images, refine_steps: int = 0, *, link_map: bool = False, codes: bool = False
    ) -> Prediction:
        """Estimate the poses in a batch.

        Args:
            images: uint8 (N, S, S, 3), RGB, fitted to squares of the model's image size; N at least 1.
            refine_steps: iterations of refinement with the memory, for hidden parts.
            link_map: draw the links too.
            codes: say which vector of each memory bank the poses retrieve.

        Raises:
            ValueError: another shape or type, or a negative number of steps.
            NoMemoryError: (a ValueError) steps or codes of a model without memory, one of the method "autolink".
        """
        side = self.config.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3) or not len(images):
            raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 (N, {side}, {side}, 3)")
        if refine_steps < 0:
            raise ValueError(f"refine_steps is {refine_steps}; expected at least 0")
        if codes and self.model.memory is None:
            raise NoMemoryError(f"a model of the method {self.config.method} has no memory, and no codes")
        with autocast(self.config.precision, self.device):
            located, trajectory = refine(self.model, to_tensor(images, self.device), refine_steps)
            drawn = self._draw(located.keypoints) if link_map else None
        return Prediction(
            located.keypoints.float().cpu().numpy(),
            located.scores.float().cpu().numpy(),
            trajectory.float().cpu().numpy(),
            drawn,
            *self._recalled(trajectory[:, 0], codes),
        )

    def _recalled(self, keypoints: torch.Tensor, wanted: bool) -> tuple[Array | None, NDArray[np.uint16] | None]:
        """Surprises and, where wanted, codes of poses (N, K, 2)."""
        memory, scale = self.model.memory, self._surprise_scale
        if memory is None or not (wanted or scale):
            return None, None
        codes, distances = recall(memory, keypoints)
        surprises = (distances / scale).float().cpu().numpy() if scale else None
        return surprises, codes.cpu().numpy().astype(np.uint16) if wanted else None

    def _draw(self, keypoints: torch.Tensor) -> NDArray[np.uint8]:
        drawn = self.model.draw_links(keypoints).squeeze(1) * (255 / self._strongest)
        values: NDArray[np.uint8] = drawn.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return values


def _surprise_scale(path: Path) -> float | None:
    """A version's scale, None where an earlier release wrote none. Raises CheckpointError for what can't be one."""
    if not path.exists():
        return None
    try:
        scale = tensor_files.load_json(path).get("surprise_scale")
        if scale is None or 0 < float(scale) < float("inf"):
            return None if scale is None else float(scale)
    except (ValueError, TypeError, AttributeError) as error:
        raise tensor_files.CheckpointError(f"{path.name} can't be read: {error}") from error
    raise tensor_files.CheckpointError(f"surprise_scale is {scale} in {path.name}; expected a number above 0")
