"""Poses in new pictures, from a version on disk; speaks numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model import checkpoint
from model.config import PPLConfig
from model.data import Images, to_tensor
from model.device import autocast, channels_last, pick_device
from model.ppl import PosePriorLearner
from model.prior import PosePrior
from model.refine import refine

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """Poses of a batch of squares.

    Attributes:
        keypoints: float32 (N, K, 2) as (x, y), the square being [-1, 1]; a keypoint may lie outside.
        scores: float32 (N, K) in [0, 1]: the share of a keypoint's attention that lies near it.
        trajectory: float32 (N, T + 1, K, 2), the pose after each of T refinement steps, the first unrefined.
        link_map: uint8 (N, S, S), the links drawn between the keypoints, 255 at the strongest; None unless asked for.
    """

    keypoints: Array
    scores: Array
    trajectory: Array
    link_map: NDArray[np.uint8] | None


class Predictor:
    """A trained model, ready to estimate poses.

    Args:
        model: put into eval mode and moved to the device.
        device: "auto", "cpu", "cuda" or a torch device name.

    Attributes:
        prior: what the model has learned; None for AutoLink, which has no keypoint prior (the prior.json of its
            versions holds the mean pose of the training pictures instead).
    """

    def __init__(self, model: PosePriorLearner, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.config = model.config
        self.model = channels_last(model, self.device).eval()
        self.prior = None if model.config.method == "autolink" else PosePrior.of(self.model)
        self._strongest = float(self.model.link_weights.detach().max())

    @classmethod
    def load(cls, directory: Path, device: str = "auto") -> Predictor:
        """Read a version: config.json and weights.safetensors in a directory.

        Raises:
            FileNotFoundError: one of them is missing.
            CheckpointError: settings or weights are damaged, or of another model or a later release.
        """
        try:
            config = PPLConfig.from_dict(checkpoint.load_json(directory / "config.json"))
        except ValueError as error:
            raise checkpoint.CheckpointError(f"the settings in {directory} can't be read: {error}") from error
        weights, _ = checkpoint.load(directory / "weights.safetensors")
        model = PosePriorLearner(config)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise checkpoint.CheckpointError(f"{directory} holds the weights of another model: {error}") from error
        return cls(model, device)

    @torch.inference_mode()
    def predict(self, images: Images, refine_steps: int = 0, *, link_map: bool = False) -> Prediction:
        """Estimate the poses in a batch.

        Args:
            images: uint8 (N, S, S, 3), RGB, fitted to squares of the model's image size; N at least 1.
            refine_steps: iterations of refinement with the memory, for hidden parts.
            link_map: draw the links too.

        Raises:
            ValueError: another shape or type, or a negative number of steps.
            NoMemoryError: (a ValueError) steps of a model without memory, one of the method "autolink".
        """
        side = self.config.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3) or not len(images):
            raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 (N, {side}, {side}, 3)")
        if refine_steps < 0:
            raise ValueError(f"refine_steps is {refine_steps}; expected at least 0")
        with autocast(self.config.precision, self.device):
            located, trajectory = refine(self.model, to_tensor(images, self.device), refine_steps)
            drawn = self._draw(located.keypoints) if link_map else None
        return Prediction(
            located.keypoints.float().cpu().numpy(),
            located.scores.float().cpu().numpy(),
            trajectory.float().cpu().numpy(),
            drawn,
        )

    def _draw(self, keypoints: torch.Tensor) -> NDArray[np.uint8]:
        drawn = self.model.draw_links(keypoints).squeeze(1) * (255 / self._strongest)
        values: NDArray[np.uint8] = drawn.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return values
