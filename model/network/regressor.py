"""From an image and the keypoint prior to the image's keypoints (PPL eq. 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import PPLConfig

from . import architecture
from .blocks import BuiltModule, ImageEncoder
from .device import full_precision
from .geometry import pixel_grid

SCORE_RADIUS = 0.25
"""An eighth of the image side, in units of [-1, 1]: see :attr:`Located.scores`."""


@dataclass(frozen=True)
class Located:
    """Keypoints of a batch.

    Attributes:
        keypoints: (B, K, 2) in [-1, 1]; a keypoint may lie outside.
        scores: (B, K) in [0, 1], without gradient: the share of a keypoint's attention within ``SCORE_RADIUS`` of
            it. Low where the part is hidden or could be in several places. Says less with the head "affine", whose
            keypoints need not lie where the attention is.
    """

    keypoints: Tensor
    scores: Tensor


class KeypointRegressor(BuiltModule):
    """A network from image and prior to keypoints, by a 2x2 matrix A_i and a translation t_i for each.

    A 3x3 convolution gives one attention map a keypoint. The features and the embedded coordinates it attends to,
    joined with the embedded prior point, pass through a two-layer network.

    head "affine": keypoints_i = A_i prior_i + t_i, A_i starting at the identity (PPL eq. 2).
    head "residual": the transformed prior times ``head_scale`` is added to the attention's mean position. Differs
    from the paper: localises better at small sizes.
    method "autolink": keypoints_i is that mean position alone, without a prior (AutoLink, He et al. 2022).
    """

    encoder: ImageEncoder
    attention: nn.Conv2d
    embed_position: nn.Linear
    embed_prior: nn.Sequential
    affine: nn.Sequential

    def __init__(self, config: PPLConfig) -> None:
        super().__init__(architecture.regressor(config))
        self.head = "attention" if config.method == "autolink" else config.head
        self.head_scale = config.head_scale
        if self.head == "affine":  # A_i starts at the identity
            for parameter in self.affine[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor, keypoint_prior: Tensor | None) -> Located:
        """Locate the keypoints.

        Args:
            image: (B, 3, S, S) in [-1, 1].
            keypoint_prior: (K, 2) in [-1, 1], detached or not as the caller decides; None for AutoLink.
        """
        features = self.encoder(image)
        logits = self.attention(features).flatten(2)
        with full_precision(image.device):
            attention = logits.float().softmax(dim=-1)  # (B, K, P)
            grid = pixel_grid(features.shape[-1], device=image.device)
            centre = attention @ grid
            if self.head == "attention":
                keypoints = centre
            else:
                assert keypoint_prior is not None
                moved = self._transform(attention, features, centre, keypoint_prior)
                keypoints = centre + self.head_scale * moved if self.head == "residual" else keypoint_prior + moved
            scores = attention_near(attention.detach(), keypoints.detach(), grid)
        return Located(keypoints, scores)

    def _transform(self, attention: Tensor, features: Tensor, centre: Tensor, keypoint_prior: Tensor) -> Tensor:
        """Return A_i prior_i + t_i, (B, K, 2); for the head "affine" without the identity in A_i."""
        pooled = torch.bmm(attention, features.flatten(2).transpose(1, 2).float())
        # the embedding is linear, so pooling the embedded coordinates is embedding the pooled ones
        descriptor = torch.cat(
            (pooled, self.embed_position(centre), self.embed_prior(keypoint_prior).expand_as(pooled)), dim=-1
        )
        parameters = self.affine(descriptor)
        matrix, translation = parameters[..., :4].unflatten(-1, (2, 2)), parameters[..., 4:]
        moved: Tensor = (matrix @ keypoint_prior[:, :, None]).squeeze(-1) + translation
        return moved


def attention_near(attention: Tensor, keypoints: Tensor, grid: Tensor) -> Tensor:
    """Return the share of each attention map (B, K, P) within ``SCORE_RADIUS`` of its keypoint (B, K, 2): (B, K)."""
    near = (grid - keypoints[:, :, None]).square().sum(-1) <= SCORE_RADIUS**2
    return (attention * near).sum(-1).clamp(0, 1)
