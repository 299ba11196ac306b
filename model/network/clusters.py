"""Attention that starts at clusters of a frozen network's activations, so that keypoints start at parts of the thing.

Not in the paper, whose attention starts at random: there the seed decides which parts get a keypoint. The clusters fade
out over the first fifth of a run, so that what was learned decides alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import PPLConfig

from .architecture import CLUSTERS_START, Values, clusters
from .blocks import pixel_grid
from .warps import Warps

FEWEST_PICTURES = 32
"""With fewer, nothing is fitted."""

_CANDIDATES, _ROUNDS, _SAMPLE = 64, 15, 20_000  # clusters to choose from; of the clustering; vectors it is fitted to
_SHARPNESS = 20.0  # of the softmax over cosines when clusters are chosen


class ClusterAttention(nn.Module):
    """Logits of attention maps: cosines of the frozen network's deepest activations with K directions, times a factor.

    Nothing in it is trained: directions are the centres of clusters, and the factor only falls.

    Attributes:
        mean, spread: (D,) of the activations.
        directions: (K, D), each of length 1; zeros before :meth:`fit`.
        factor: scalar from 0 to ``CLUSTERS_START``; 0 before :meth:`fit`, and once the clusters have faded out.
    """

    mean: Tensor
    spread: Tensor
    directions: Tensor
    factor: Tensor

    def __init__(self, config: PPLConfig) -> None:
        super().__init__()
        parts = clusters(config)
        assert parts is not None
        for name, values in parts.parts.items():
            assert isinstance(values, Values)
            self.register_buffer(name, torch.zeros(values.shape))

    @torch.no_grad()
    def forward(self, activations: Tensor, side: int) -> Tensor:
        """Return logits (B, K, side²) of activations (B, D, s, s), in full precision."""
        logits: Tensor = (self._describe(activations, side) @ self.directions.T * self.factor).transpose(1, 2)
        return logits

    def weaken(self, share: float) -> None:
        """Lower the factor to a share of that at the start; it never rises, also where training continues."""
        self.factor.clamp_(max=share * CLUSTERS_START)

    @torch.no_grad()
    def fit(self, activations: Tensor, warped: Tensor, warps: Warps, side: int, generator: torch.Generator) -> None:
        """Start from clusters of the activations (N, D, s, s) of N pictures, for attention maps of side² cells.

        Of many clusters the K are taken whose mean positions follow the pictures best when these are warped: parts of
        the thing do; what fills the background, or is cut off by the edge of a picture, does not.

        Args:
            warped: activations of the same pictures after ``warps``.
        """
        self.mean.copy_(activations.mean((0, 2, 3)))
        self.spread.copy_(activations.std((0, 2, 3)))
        vectors, grid = self._describe(activations, side), pixel_grid(side, device=activations.device)
        centres = cluster_vectors(vectors.flatten(0, 1), _CANDIDATES, _ROUNDS, _SAMPLE, generator)
        places, found = (
            (cells @ centres.T * _SHARPNESS).softmax(1).transpose(1, 2) @ grid
            for cells in (vectors, self._describe(warped, side))
        )
        chosen = warps.followed(places, found).argsort(descending=True)[: len(self.directions)]
        self.directions.copy_(centres[chosen])
        self.factor.fill_(CLUSTERS_START)

    def _describe(self, activations: Tensor, side: int) -> Tensor:
        """Return a unit vector for each cell of the attention map, (B, side², D)."""
        cells = functional.interpolate(activations.float(), size=(side, side), mode="bilinear")
        standard = (cells - self.mean[:, None, None]) / (self.spread[:, None, None] + 1e-6)
        return functional.normalize(standard, dim=1).flatten(2).transpose(1, 2)


def cluster_vectors(vectors: Tensor, count: int, rounds: int, sample: int, generator: torch.Generator) -> Tensor:
    """Return the centres (count, D) of clusters of unit vectors (N, D), also of length 1, by spherical k-means.

    Args:
        sample: the most vectors that it is fitted to, drawn at random.
    """
    vectors = vectors[torch.randperm(len(vectors), generator=generator)[:sample].to(vectors.device)]
    centres = vectors[:count]
    for _ in range(rounds):
        nearest = functional.one_hot((vectors @ centres.T).argmax(1), len(centres)).to(vectors)
        sums = nearest.T @ vectors
        centres = torch.where(nearest.sum(0)[:, None] > 0, functional.normalize(sums, dim=1), centres)
    return centres


def relative_errors(inputs: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Return the errors (K,) of linear maps from points (N, D, 2) to points (N, K, 2), divided by those of their means.

    Maps are scored on the half of the pictures that they were not fitted on. Points that do not move have the error 1.
    """
    inputs, targets = inputs.double().flatten(1), targets.double()
    missed = moved = torch.zeros(targets.shape[1], dtype=torch.float64, device=targets.device)
    for first in range(2):
        fitted, scored = slice(first, None, 2), slice(1 - first, None, 2)
        mean, spread = inputs[fitted].mean(0), inputs[fitted].std(0, correction=0)
        scaled, centre = (inputs - mean) / (spread + 1e-3), targets[fitted].mean(0)
        design, known = scaled[fitted], (targets[fitted] - centre).flatten(1)
        penalty = ridge * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64, device=inputs.device)
        maps = torch.linalg.solve(design.T @ design + penalty, design.T @ known)
        found = (scaled[scored] @ maps).view_as(targets[scored]) + centre
        missed = missed + (found - targets[scored]).norm(dim=-1).sum(0)
        moved = moved + (centre - targets[scored]).norm(dim=-1).sum(0)
    return torch.where(moved > 1e-6 * len(targets), missed / moved.clamp_min(1e-9), 1.0)
