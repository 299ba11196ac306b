"""Attention that starts at clusters of a frozen network's activations, so that keypoints start at parts of the thing.

Not in the paper, whose attention starts at random: there the seed decides which parts get a keypoint.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import PPLConfig

from .architecture import Values, clusters
from .blocks import pixel_grid

FEWEST_PICTURES = 32
"""With fewer, nothing is fitted."""

_CANDIDATES, _ROUNDS, _SAMPLE = 64, 15, 20_000  # clusters to choose from; of the clustering; vectors it is fitted to
_SHARPNESS = 20.0  # of the softmax over cosines, at the start
_RIDGE = 0.1
_SOFTEST_NORM = 0.1  # of a direction: unfitted ones are zero, and still pass a gradient of ordinary size


class ClusterAttention(nn.Module):
    """Logits of attention maps: cosines of the frozen network's deepest activations with K directions, times a factor.

    Directions start at the centres of clusters, and are trained like the rest.

    Attributes:
        mean, spread: (D,) of the activations; not trained.
        directions: (K, D); zeros unless fitted.
        log_sharpness: (K,), logarithm of the factor.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, config: PPLConfig) -> None:
        super().__init__()
        parts = clusters(config)
        assert parts is not None
        shapes = {name: values.shape for name, values in parts.parts.items() if isinstance(values, Values)}
        self.register_buffer("mean", torch.zeros(shapes["mean"]))
        self.register_buffer("spread", torch.ones(shapes["spread"]))
        self.directions = nn.Parameter(torch.zeros(shapes["directions"]))
        self.log_sharpness = nn.Parameter(torch.zeros(shapes["log_sharpness"]))

    def forward(self, activations: Tensor, side: int) -> Tensor:
        """Return logits (B, K, side²) of activations (B, D, s, s), in full precision."""
        directions = self.directions / self.directions.norm(dim=1, keepdim=True).clamp_min(_SOFTEST_NORM)
        with torch.no_grad():
            vectors = self._describe(activations, side)
        logits: Tensor = (vectors @ directions.T * self.log_sharpness.exp()).transpose(1, 2)
        return logits

    @torch.no_grad()
    def fit(self, activations: Tensor, side: int, generator: torch.Generator) -> None:
        """Start from clusters of the activations (N, D, s, s) of N pictures, for attention maps of side² cells.

        Of many clusters the K are taken whose mean positions follow best, over the pictures, from those of all others:
        parts of the thing move together, those of the background do not.
        """
        self.mean.copy_(activations.mean((0, 2, 3)))
        self.spread.copy_(activations.std((0, 2, 3)))
        vectors = self._describe(activations, side)
        centres = cluster_vectors(vectors.flatten(0, 1), _CANDIDATES, _ROUNDS, _SAMPLE, generator)
        attention = (vectors @ centres.T * _SHARPNESS).softmax(1).transpose(1, 2)
        positions = attention @ pixel_grid(side, device=attention.device)
        errors = []
        for index in range(len(centres)):
            others = torch.cat((positions[:, :index], positions[:, index + 1 :]), dim=1)
            errors.append(relative_errors(others, positions[:, index : index + 1], _RIDGE))
        chosen = torch.cat(errors).argsort()[: len(self.directions)]
        self.directions.copy_(centres[chosen])
        self.log_sharpness.fill_(math.log(_SHARPNESS))

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
