"""Find the thing in pictures where it is small or anywhere, and crop them around it.

Not in the paper, whose pictures are all cropped. What the pictures of a set have in common, and their borders do not
have, is the thing: cells whose frozen activations differ from those at the picture's border teach a linear map. It
marks cells of the thing in all pictures, is fitted again to the cells that it marked, and so on. The best square of
each picture is its crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .architecture import FEATURE_WIDTHS

FEWEST_PICTURES = 32
"""With fewer, nothing is fitted and whole pictures are taken."""

_ROUNDS = 3
_RIDGE = 0.2  # per cell, of activations with a variance of 1
_FEWEST_CELLS = 4  # along a side of the square
_REACH = 0.6  # of the square's side: cells nearer than this to its middle have a say in where that is
_MARGIN = 1.2
_WANDERING = 0.15  # standard deviation of the middle over the pictures, in [-1, 1]; that of cropped sets is 0.1 at most


class Locator(nn.Module):
    """A linear map from a cell's frozen activations to whether it belongs to the thing.

    Its cells are those of the frozen network's activations at 1/8 of its input, joined with those at 1/16.

    Attributes:
        weight: (C,); zeros unless fitted, for sets whose pictures are taken as a whole.
        bias: scalar.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, features: str) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(sum(FEATURE_WIDTHS[features][1:])))
        self.register_buffer("bias", torch.zeros(()))

    @property
    def fitted(self) -> bool:
        """Whether it finds anything; else whole pictures are taken."""
        return bool(self.weight.any())

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        """Find the thing in a batch, from the levels of the frozen network's activations.

        Returns:
            The crops (B, 3) as x and y of the middle and half of the side, in [-1, 1] of the picture, within it.
        """
        return find_squares(describe_cells(activations) @ self.weight + self.bias)

    @torch.no_grad()
    def fit(self, cells: Tensor) -> bool:
        """Fit to a set's cells (N, P, C), as :func:`describe_cells` gives them, if the thing's place varies in it.

        Returns False, and stays as it is, if the thing seems to be at about one place in all pictures.
        """
        mean, spread = cells.mean((0, 1)), cells.std((0, 1)).clamp_min(1e-6)
        inputs = (cells - mean) / spread
        marks = _unlike_border(inputs)
        marked = marks > marks.median(1, keepdim=True).values + 0.3 * marks.std(1, keepdim=True)
        flat = inputs.flatten(0, 1).double()
        for _ in range(_ROUNDS):
            thing = marked.flatten()
            share = thing.double().mean().clamp(1e-3, 1 - 1e-3)
            importance = torch.where(thing, 0.5 / share, 0.5 / (1 - share))[:, None]
            middle = (flat * importance).sum(0) / importance.sum()
            weighted = (flat - middle) * importance
            gram = (flat - middle).T @ weighted + _RIDGE * len(flat) * torch.eye(flat.shape[1], dtype=flat.dtype)
            slope = torch.linalg.solve(gram, weighted.T @ torch.where(thing, 1.0, -1.0).double())
            marked = ((flat - middle) @ slope).view_as(marks) > 0
        weight = slope.float() / spread
        bias = -(weight @ mean) - (middle @ slope).float()
        squares = find_squares(cells @ weight + bias)
        if squares[:, :2].std(0).mean() < _WANDERING:
            return False
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        return True


def describe_cells(activations: Sequence[Tensor]) -> Tensor:
    """Return what the frozen network saw in each cell, float (B, P, C), the cells in rows.

    The deeper level is interpolated to the cells of the other one. A cell's activations belong to its first pixel, see
    :func:`_cell_centres`, not to its middle.
    """
    fine, deep = activations[-2].float(), activations[-1].float()
    side = fine.shape[-1]
    between = functional.interpolate(deep, (side - 1, side - 1), mode="bilinear", align_corners=True)
    deep = functional.pad(between, (0, 1, 0, 1), mode="replicate")
    return torch.cat((fine, deep), dim=1).flatten(2).transpose(1, 2)


def find_squares(marks: Tensor) -> Tensor:
    """Find the square that holds the most of what is marked, above 0, and the least of what is not.

    Args:
        marks: (B, P), the cells in rows.

    Returns:
        Squares (B, 3) with a margin, within the picture: x and y of the middle and half of the side, in [-1, 1].
    """
    count, side = len(marks), round(marks.shape[1] ** 0.5)
    sums = functional.pad(marks.view(count, side, side).cumsum(1).cumsum(2), (1, 0, 1, 0))
    best = marks.new_full((count,), float("-inf"))
    corner, cells = marks.new_zeros(count, 2), marks.new_full((count,), side)
    for size in range(min(_FEWEST_CELLS, side), side + 1):
        inside = sums[:, size:, size:] - sums[:, :-size, size:] - sums[:, size:, :-size] + sums[:, :-size, :-size]
        value, at = inside.flatten(1).max(1)
        row, column = at // (side + 1 - size), at % (side + 1 - size)
        better = value > best
        best = torch.where(better, value, best)
        corner = torch.where(better[:, None], torch.stack((column, row), 1).to(marks), corner)
        cells = torch.where(better, size, cells)
    places = _cell_centres(side, marks)
    step = 2 / side
    half = cells * step / 2
    middle = places[0] + (corner + (cells[:, None] - 1) / 2) * step
    for _ in range(2):
        near = ((places - middle[:, None]).abs() <= 2 * _REACH * half[:, None, None]).all(-1)
        mass = marks.clamp_min(0) * near
        mean = (mass[..., None] * places).sum(1) / mass.sum(1, keepdim=True).clamp_min(1e-6)
        middle = torch.where(mass.sum(1, keepdim=True) > 0, mean, middle)
    half = (half * _MARGIN).clamp_max(1)
    return torch.cat((middle.clamp(half[:, None] - 1, 1 - half[:, None]), half[:, None]), dim=1)


def crop(images: Tensor, squares: Tensor) -> Tensor:
    """Crop images (B, C, S, S) to squares (B, 3) of themselves, enlarged to the same size by bilinear interpolation."""
    return _resample(images, squares[:, :2], squares[:, 2])


def uncrop(crops: Tensor, squares: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Put crops (B, C, s, s) back where they were cut out, black elsewhere.

    Returns:
        The images (B, C, side, side), and how much of each pixel the crop covers, (B, 1, side, side) in [0, 1].
    """
    shape = (side, side)
    middle, scale = -squares[:, :2] / squares[:, 2:], 1 / squares[:, 2]
    covered = _resample(torch.ones_like(crops[:, :1]), middle, scale, shape, padding="zeros")
    return _resample(crops, middle, scale, shape, padding="zeros"), covered


def to_whole(keypoints: Tensor, squares: Tensor) -> Tensor:
    """Convert points (B, …, 2) from [-1, 1] of the squares (B, 3) to [-1, 1] of the picture."""
    shape = (-1, *([1] * (keypoints.ndim - 2)))
    return squares[:, :2].view(*shape, 2) + keypoints * squares[:, 2].view(*shape, 1)


def _resample(
    images: Tensor, middle: Tensor, scale: Tensor, shape: tuple[int, int] | None = None, padding: str = "border"
) -> Tensor:
    zero = torch.zeros_like(scale)
    rows = (torch.stack((scale, zero, middle[:, 0]), 1), torch.stack((zero, scale, middle[:, 1]), 1))
    size = [len(images), 1, *(shape or images.shape[-2:])]
    grid = functional.affine_grid(torch.stack(rows, 1).to(images), size, align_corners=False)
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def _unlike_border(inputs: Tensor) -> Tensor:
    """Return how much each cell of (N, P, C) differs from the cells at its picture's border, (N, P)."""
    side = round(inputs.shape[1] ** 0.5)
    border = torch.ones(side, side, dtype=torch.bool, device=inputs.device)
    border[1:-1, 1:-1] = False
    around = inputs[:, border.flatten()]
    variance = around.var(1, keepdim=True) + 0.1
    return ((inputs - around.mean(1, keepdim=True)).square() / variance).mean(-1).sqrt()


def _cell_centres(side: int, like: Tensor) -> Tensor:
    """Return the places that cells describe, (P, 2) in [-1, 1].

    The frozen network's strided convolutions are padded equally on both sides, so what cell i says is centred on its
    first pixel.
    """
    axis = torch.arange(side, dtype=like.dtype, device=like.device) * (2 / side) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(-1, 2)
