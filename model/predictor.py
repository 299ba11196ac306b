"""Estimate poses in new pictures with a version on disk; numpy in, numpy out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import PPLConfig
from model.data import Images, to_pixels, to_tensor
from model.network.blocks import autocast, channels_last, pick_device, shrink
from model.network.locator import crop, to_whole, uncrop
from model.network.memory import recall
from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import NoMemoryError, refine
from model.scoring.presence import Presence
from model.version import tensor_files
from model.version.prior import PosePrior
from model.version.tensor_files import CheckpointError

Array = NDArray[np.float32]
PRESENCE_FILE = "presence.json"


@dataclass(frozen=True)
class Prediction:
    """Poses of a batch of squares.

    Attributes:
        keypoints: float32 (N, K, 2) as (x, y), the square being [-1, 1]; a keypoint may lie outside.
        scores: float32 (N, K) in [0, 1]: the share of a keypoint's attention that lies near it.
        trajectory: float32 (N, T + 1, K, 2), the unrefined pose and that after each of T refinement steps.
        link_map: uint8 (N, S, S), the links between the keypoints, 255 at the strongest; None unless requested.
        surprises: float32 (N,), the distance of the unrefined pose to the memory's nearest; 1 at the 99th percentile of
            the training pictures. None without a memory, or for versions without that scale.
        codes: uint16 (N, M), the nearest vector of each memory bank to the unrefined pose; None unless requested.
        presences: float32 (N,), the probability that the thing is there; None for versions that were not calibrated.
        reconstructions: uint8 (N, T + 1, s, s, 3), RGB of the working side s, what the model makes of the square with
            each pose of the trajectory; None unless requested.
    """

    keypoints: Array
    scores: Array
    trajectory: Array
    link_map: NDArray[np.uint8] | None
    surprises: Array | None = None
    codes: NDArray[np.uint16] | None = None
    presences: Array | None = None
    reconstructions: Images | None = None


class Predictor:
    """A trained model, ready to estimate poses.

    Args:
        model: put into eval mode and moved to the device.
        device: "auto", "cpu", "cuda" or a torch device name.
        surprise_scale: the distance to the memory that counts as a surprise of 1; None if it was not measured.
        presence: the calibrated estimate of whether the thing is there; None if it was not calibrated.

    Attributes:
        prior: the learned prior; None for AutoLink, which has no keypoint prior.
    """

    def __init__(
        self,
        model: PosePriorLearner,
        device: str = "auto",
        surprise_scale: float | None = None,
        presence: Presence | None = None,
    ) -> None:
        self.device = pick_device(device)
        self.config = model.config
        self.model = channels_last(model, self.device).eval()
        self.prior = None if model.config.method == "autolink" else PosePrior.from_model(self.model)
        self._surprise_scale, self._presence = surprise_scale, presence
        self._max_weight = float(self.model.link_weights.detach().max())

    @classmethod
    def load(cls, directory: Path, device: str = "auto") -> Predictor:
        """Load a version from its config.json, weights.safetensors and, if present, memory.json and presence.json.

        Raises:
            FileNotFoundError: settings or weights are missing.
            CheckpointError: a file is damaged, or of another model or a later release.
            WeightsUnavailableError: the frozen network that it was trained with is not installed.
        """
        try:
            config = PPLConfig.from_dict(tensor_files.load_json(directory / "config.json"))
        except ValueError as error:
            raise CheckpointError(f"the settings in {directory} can't be read: {error}") from error
        weights, facts = tensor_files.load(directory / "weights.safetensors")
        model = PosePriorLearner(config)
        tensor_files.check_features(model, facts)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{directory} holds the weights of another model: {error}") from error
        model.freeze()
        scale, presence = _read_surprise_scale(directory / "memory.json"), _read_presence(directory / PRESENCE_FILE)
        return cls(model, device, scale, presence)

    @torch.inference_mode()
    def predict(
        self,
        images: Images,
        refine_steps: int = 0,
        *,
        link_map: bool = False,
        codes: bool = False,
        reconstructions: bool = False,
    ) -> Prediction:
        """Estimate the poses in a batch of squares, uint8 (N, S, S, 3), RGB, of the model's image size; N at least 1.

        ``refine_steps`` are iterations of refinement with the memory, for hidden parts. Raises NoMemoryError, a
        ValueError, if steps, codes or reconstructions are requested of an AutoLink model, which has no memory.
        """
        side = self.config.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3) or not len(images):
            raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 (N, {side}, {side}, 3)")
        if refine_steps < 0:
            raise ValueError(f"refine_steps is {refine_steps}; expected at least 0")
        if codes and self.model.memory is None:
            raise NoMemoryError(f"a model of the method {self.config.method} has no memory, and no codes")
        with autocast(self.config.precision, self.device):
            whole = to_tensor(images, self.device)
            squares = self.model.find_crops(whole)
            filled: list[torch.Tensor] | None = [] if reconstructions else None
            picture = whole if squares is None else crop(whole, squares)
            located, trajectory = refine(self.model, picture, refine_steps, filled)
            drawn = self._draw(located.keypoints, squares) if link_map else None
        shown = trajectory.float() if squares is None else to_whole(trajectory.float(), squares)
        pictures = filled if filled is None or squares is None else [_lay_over(part, whole, squares) for part in filled]
        return Prediction(
            shown[:, -1].cpu().numpy(),
            located.scores.float().cpu().numpy(),
            shown.cpu().numpy(),
            drawn,
            *self._recall(trajectory[:, 0], codes),
            self._estimate_presence(trajectory[:, 0], located.evidence),
            None if pictures is None else to_pixels(torch.stack(pictures, dim=1)),
        )

    def _estimate_presence(self, keypoints: torch.Tensor, evidence: torch.Tensor | None) -> Array | None:
        if self._presence is None:
            return None
        return self._presence.probability(join_evidence(self.model, keypoints, evidence)).astype(np.float32)

    def _recall(self, keypoints: torch.Tensor, with_codes: bool) -> tuple[Array | None, NDArray[np.uint16] | None]:
        """Return surprises and, if requested, codes of poses (N, K, 2)."""
        memory, scale = self.model.memory, self._surprise_scale
        if memory is None or not (with_codes or scale):
            return None, None
        codes, distances = recall(memory, keypoints)
        surprises = (distances / scale).float().cpu().numpy() if scale else None
        return surprises, codes.cpu().numpy().astype(np.uint16) if with_codes else None

    def _draw(self, keypoints: torch.Tensor, squares: torch.Tensor | None) -> NDArray[np.uint8]:
        drawn = self.model.draw_links(keypoints, self.config.image_size)
        if squares is not None:
            drawn = uncrop(drawn, squares, self.config.image_size)[0]
        drawn = drawn.squeeze(1) * (255 / self._max_weight)
        values: NDArray[np.uint8] = drawn.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return values


def _lay_over(part: torch.Tensor, whole: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Lay crops (B, 3, s, s) over the pictures that they were cut out of, at the crops' size."""
    laid, covered = uncrop(part.float(), squares, part.shape[-1])
    return laid + (1 - covered) * shrink(whole, part.shape[-1])


def join_evidence(
    model: PosePriorLearner, keypoints: torch.Tensor, evidence: torch.Tensor | None
) -> NDArray[np.float64]:
    """Join what was seen of pictures, (B, 2 + D), with the distances of their poses (B, K, 2) to the memory.

    Returns (B, 3 + D), as :class:`model.scoring.presence.Presence` takes it; the distances of a model without a memory
    are 0.
    """
    assert evidence is not None
    distances = evidence.new_zeros(len(keypoints)) if model.memory is None else recall(model.memory, keypoints)[1]
    joined = torch.cat((evidence[:, :2], distances[:, None], evidence[:, 2:]), dim=1)
    return joined.double().cpu().numpy()


def _read_presence(path: Path) -> Presence | None:
    """Read a version's calibration; None for earlier releases, which had none. Raises CheckpointError."""
    if not path.exists():
        return None
    try:
        return Presence.from_json(tensor_files.load_json(path))
    except ValueError as error:
        raise CheckpointError(f"{path.name} can't be read: {error}") from error


def _read_surprise_scale(path: Path) -> float | None:
    """Read a version's scale; None for earlier releases, which had none. Raises CheckpointError."""
    if not path.exists():
        return None
    try:
        scale = tensor_files.load_json(path).get("surprise_scale")
        if scale is None or 0 < float(scale) < float("inf"):
            return None if scale is None else float(scale)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} can't be read: {error}") from error
    raise CheckpointError(f"surprise_scale is {scale} in {path.name}; expected a number above 0")
