"""Find the thing in pictures where it is small, anywhere or turned, and crop them around it.

Not in the paper, whose pictures are all cropped and upright. What the pictures of a set have in common, and their
borders do not have, is the thing: cells whose frozen activations differ from those at the picture's border teach a
linear map. It marks cells of the thing in all pictures, is fitted again to the cells that it marked, and so on. The
best square of each picture is its crop. Angles are found by congealing (Learned-Miller 2006, here on frozen
activations): each picture is rotated to where it agrees best with the mean of the others, which sharpens with every
round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import PPLConfig

from .architecture import Values, locator
from .blocks import full_precision, pixel_grid

Features = Callable[[Tensor], Sequence[Tensor]]

FEWEST_PICTURES = 32
"""With fewer, nothing is fitted and whole pictures are taken."""

_ROUNDS = 3
_RIDGE = 0.2  # per cell, of activations with a variance of 1
_FEWEST_CELLS = 4  # along a side of the square
_REACH = 0.6  # of the square's side: cells nearer than this to its middle have a say in where that is
_MARGIN = 1.2
_WANDERING = 0.15  # standard deviation of the middle over the pictures, in [-1, 1]; that of cropped sets is 0.1 at most

_ANGLES = 16
_STARTS, _MOST_ROUNDS = 12, 30
_UPRIGHT = 0.5  # resultant length of the angles found: with less, a set's pictures are rotated
_AGREEING = 0.85  # resultant length of the differences between the angles that the templates of both halves find


class Locator(nn.Module):
    """A linear map from a cell's frozen activations to whether it belongs to the thing, and a template of its angle.

    Its cells are those of the frozen network's activations at 1/8 of its input, joined with those at 1/16; the template
    has the latter.

    A crop is x and y of its middle, half of its side, both in [-1, 1] of the picture, and the angle in radians by which
    it is rotated, clockwise as seen.

    Attributes:
        weight: (C,); zeros unless fitted, for sets whose pictures are taken as a whole.
        bias: scalar.
        template: (D, P); zeros unless fitted, for sets whose pictures are taken upright.
    """

    weight: Tensor
    bias: Tensor
    template: Tensor

    def __init__(self, config: PPLConfig) -> None:
        super().__init__()
        parts = locator(config)
        assert parts is not None
        for name, values in parts.parts.items():
            assert isinstance(values, Values)
            self.register_buffer(name, torch.zeros(values.shape))

    @property
    def fitted(self) -> bool:
        """Whether it finds anything; else whole pictures are taken."""
        return bool(self.weight.any() or self.template.any())

    def forward(self, image: Tensor, features: Features) -> Tensor:
        """Find the thing in pictures (B, 3, S, S) in [-1, 1]; ``features`` gives the frozen network's activations.

        Returns its crops, (B, 4). The square of each lies within the picture before it is rotated.
        """
        crops = image.new_tensor((0.0, 0.0, 1.0, 0.0)).repeat(len(image), 1)
        if self.weight.any():
            with torch.no_grad():
                activations = features(image)
            with full_precision(image.device):
                crops[:, :3] = find_squares(describe_cells(activations) @ self.weight + self.bias)
        if self.template.any():
            turned = describe_angles(crop(image, crops), features)
            with full_precision(image.device):
                crops[:, 3] = _best_angle(turned.flatten(2) @ self.template.flatten())
        return crops

    @torch.no_grad()
    def fit_place(self, cells: Tensor) -> bool:
        """Fit to a set's cells (N, P, C), as :func:`describe_cells` gives them, if the thing's place varies in it.

        Returns False, and stays as it is, if the thing seems to be at about one place in all pictures.
        """
        mean, spread = cells.mean((0, 1)), cells.std((0, 1)).clamp_min(1e-6)
        inputs = (cells - mean) / spread
        marks = _border_distance(inputs)
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

    @torch.no_grad()
    def fit_angle(self, turned: Tensor) -> bool:
        """Fit the template to pictures at every angle (N, A, D, P), as :func:`describe_angles` gives them.

        Returns False, and stays as it is, if the thing has about the same angle in all pictures, or if templates of
        either half of them disagree about its angle: it is round, or looks too different.
        """
        inputs, spread = _standardise(turned)
        template = _congeal(inputs)
        first, second = (_best_angle(inputs @ _congeal(inputs[half::2])) for half in (0, 1))
        if (
            _resultant_length(_best_angle(inputs @ template)) > _UPRIGHT
            or _resultant_length(first - second) < _AGREEING
        ):
            return False
        self.template.copy_((template / spread).view(self.template.shape))
        return True


def is_upright(turned: Tensor) -> bool:
    """Return whether the thing has about the same angle in all pictures, by their activations (N, A, D, P)."""
    inputs, _ = _standardise(turned)
    return _resultant_length(_best_angle(inputs @ _congeal(inputs))) > _UPRIGHT


def describe_cells(activations: Sequence[Tensor]) -> Tensor:
    """Return the frozen network's activations of each cell, float (B, P, C), the cells in rows.

    The deeper level is interpolated to the cells of the other one. A cell's activations belong to its first pixel, see
    :func:`_cell_centres`, not to its middle.
    """
    fine, deep = activations[-2].float(), activations[-1].float()
    side = fine.shape[-1]
    between = functional.interpolate(deep, (side - 1, side - 1), mode="bilinear", align_corners=True)
    deep = functional.pad(between, (0, 1, 0, 1), mode="replicate")
    return torch.cat((fine, deep), dim=1).flatten(2).transpose(1, 2)


def find_squares(marks: Tensor) -> Tensor:
    """Find the square with the greatest sum of marks; cells above 0 belong to the thing, others do not.

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


def describe_angles(image: Tensor, features: Features) -> Tensor:
    """Return the frozen network's activations (B, A, D, P) of the disc in images (B, 3, S, S), turned by each angle."""
    side = image.shape[-1]
    round_middle = (pixel_grid(side, device=image.device).norm(dim=1) < 1).view(side, side)
    seen, crops = [], image.new_tensor((0.0, 0.0, 1.0, 0.0)).repeat(len(image), 1)
    for index in range(_ANGLES):
        crops[:, 3] = index * 2 * math.pi / _ANGLES
        with torch.no_grad():
            seen.append(features(crop(image, crops) * round_middle)[-1].float().flatten(2))
    return torch.stack(seen, dim=1)


def crop(images: Tensor, crops: Tensor) -> Tensor:
    """Crop images (B, C, S, S), enlarged to the same size by bilinear interpolation; reflected beyond their borders."""
    middle, half, angle = crops[:, :2], crops[:, 2], crops[:, 3]
    return _resample(images, half[:, None, None] * _rotation(angle), middle, images.shape[-1], "reflection")


def uncrop(parts: Tensor, crops: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Put crops (B, C, s, s) back where they were cut out, 0 elsewhere.

    Returns:
        The images (B, C, side, side), and how much of each pixel the crop covers, (B, 1, side, side) in [0, 1].
    """
    matrix = _rotation(-crops[:, 3]) / crops[:, 2, None, None]
    middle = -(matrix * crops[:, None, :2]).sum(-1)
    covered = _resample(torch.ones_like(parts[:, :1]), matrix, middle, side, "zeros")
    return _resample(parts, matrix, middle, side, "zeros"), covered


def to_whole(keypoints: Tensor, crops: Tensor) -> Tensor:
    """Convert points (B, …, 2) from [-1, 1] of the crops to [-1, 1] of the picture."""
    flat = keypoints.flatten(1, -2)
    turned = flat @ (crops[:, 2, None, None] * _rotation(crops[:, 3])).transpose(1, 2)
    return (turned + crops[:, None, :2]).view_as(keypoints)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)


def _resample(images: Tensor, matrix: Tensor, middle: Tensor, side: int, padding: str) -> Tensor:
    theta, size = torch.cat((matrix, middle[..., None]), dim=2), [len(images), 1, side, side]
    with full_precision(images.device):  # in bf16 places would be off by half a pixel
        grid = functional.affine_grid(theta.float(), size, align_corners=False)
        return functional.grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)


def _best_angle(agreement: Tensor) -> Tensor:
    """Return the angle (N,) in radians at which (N, A) peaks, refined by a parabola through the peak's neighbours."""
    count = agreement.shape[1]
    at = agreement.argmax(1, keepdim=True)
    before, top, after = (agreement.gather(1, (at + shift) % count).squeeze(1) for shift in (-1, 0, 1))
    curvature = (before - 2 * top + after).clamp_max(-1e-9)
    return (at.squeeze(1) + (before - after) / (2 * curvature)) * (2 * math.pi / count)


def _standardise(turned: Tensor) -> tuple[Tensor, Tensor]:
    """Return activations (N, A, D, P) as (N, A, D * P) with mean 0 and variance 1, and their standard deviation."""
    inputs = turned.flatten(2) - turned.flatten(2).mean((0, 1))
    spread = inputs.square().mean((0, 1)).sqrt() + 1e-3
    return inputs / spread, spread


def _congeal(inputs: Tensor) -> Tensor:
    """Return the template (F,) with which pictures (N, A, F) agree most at their best angles, from several starts."""
    best, chosen, rows = -math.inf, inputs[0, 0], torch.arange(len(inputs))
    for start in torch.linspace(0, len(inputs) - 1, _STARTS).round().long():
        template, angles = inputs[start, 0], torch.full((len(inputs),), -1)
        for _ in range(_MOST_ROUNDS):
            found = (inputs @ template).argmax(1)
            if torch.equal(found, angles):
                break
            angles = found
            template = functional.normalize(inputs[rows, angles].mean(0), dim=0)
        agreement = float((inputs @ template).amax(1).mean())
        if agreement > best:
            best, chosen = agreement, template
    return chosen


def _resultant_length(angles: Tensor) -> float:
    """Return the resultant length of angles (N,): 1 if they are equal, near 0 if they are spread evenly."""
    return float(torch.hypot(angles.cos().mean(), angles.sin().mean()))


def _border_distance(inputs: Tensor) -> Tensor:
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
