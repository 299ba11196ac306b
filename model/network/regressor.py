"""From an image and the keypoint prior to the image's keypoints (PPL eq. 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blocks import ResidualDown, Up
from .device import full_precision
from .geometry import pixel_grid

SCORE_RADIUS = 0.25
"""An eighth of the image's side, in units of [-1, 1]: see :attr:`Located.scores`."""


@dataclass(frozen=True)
class Located:
    """Where the keypoints of a batch are.

    Attributes:
        keypoints: (B, K, 2) in [-1, 1]; a keypoint may lie outside.
        scores: (B, K) in [0, 1], the share of a keypoint's attention that lies within ``SCORE_RADIUS`` of
            the keypoint. Low where the part is hidden or could be in several places. With the head "affine"
            a keypoint need not lie where its attention is, and the score says less. No gradient.
    """

    keypoints: Tensor
    scores: Tensor


class ImageEncoder(nn.Module):
    """A 2D CNN trained from scratch: four residual down blocks, two up blocks; (B, 3, S, S) to (B, C, S/4, S/4).

    Differs from the release: the two skips of a U-Net, which cost little and place keypoints better.
    """

    def __init__(self, base_width: int, skips: str = "concat") -> None:
        super().__init__()
        widths = [base_width * factor for factor in (1, 2, 4, 8)]
        self.down = nn.ModuleList(ResidualDown(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList((Up(widths[3], widths[2], skips), Up(widths[2], widths[1], skips)))
        self.out_channels = widths[1]

    def forward(self, image: Tensor) -> Tensor:
        levels = []
        x = image
        for block in self.down:
            x = block(x)
            levels.append(x)
        x = self.up[0](x, levels[2])
        out: Tensor = self.up[1](x, levels[1])
        return out


class KeypointRegressor(nn.Module):
    """A 2x2 matrix A_i and a translation t_i for each keypoint, from attention over the image and the prior.

    A 3x3 convolution gives one attention map a keypoint. What it attends to (features joined with embedded
    coordinates), joined with the embedded prior point, goes through a two-layer network.

    With ``head="affine"`` keypoints_i = A_i prior_i + t_i, A_i starting at the identity (PPL eq. 2). With
    ``head="residual"`` the same transformed prior, times ``head_scale``, is added to the attention's mean
    position: differs from the paper; localises better at small sizes. With ``head="attention"`` keypoints_i is
    that mean position alone, without prior and without transformation (AutoLink, He et al. 2022).
    """

    def __init__(
        self, num_keypoints: int, base_width: int, head: str, head_scale: float = 0.1, skips: str = "concat"
    ) -> None:
        super().__init__()
        self.head, self.head_scale = head, head_scale
        self.encoder = ImageEncoder(base_width, skips)
        channels = self.encoder.out_channels
        self.attention = nn.Conv2d(channels, num_keypoints, 3, padding=1)
        if head == "attention":
            return
        self.embed_position = nn.Linear(2, channels)
        self.embed_prior = nn.Sequential(nn.Linear(2, channels), nn.ReLU(), nn.Linear(channels, channels))
        last = nn.Linear(channels, 6)
        if head == "affine":  # the identity to start with
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.affine = nn.Sequential(nn.Linear(3 * channels, channels), nn.ReLU(), last)

    def forward(self, image: Tensor, keypoint_prior: Tensor | None) -> Located:
        """Locate the keypoints.

        Args:
            image: (B, 3, S, S) in [-1, 1].
            keypoint_prior: (K, 2) in [-1, 1]; taken as a constant or not as the caller decides. None with the
                head "attention".
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
        """A_i prior_i + t_i, (B, K, 2), of what each keypoint attends to."""
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
    """The share of each attention map (B, K, P) within ``SCORE_RADIUS`` of its keypoint (B, K, 2): (B, K)."""
    near = (grid - keypoints[:, :, None]).square().sum(-1) <= SCORE_RADIUS**2
    return (attention * near).sum(-1).clamp(0, 1)
