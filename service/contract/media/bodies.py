"""The body of an animal as a bent ellipse, and its fit to foreground that several animals may share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

VALUES = 5  # of a body: x, y, angle of its axis in radians, bend, logarithm of its stretch
STEPS = np.array([0.05, 0.05, 0.2, 0.15, 0.08])  # their deviations between two frames; of a place in body lengths
_USUAL = np.array([0.3, 0.2])  # deviations of bend and stretch
_ROUNDS = 5
_CELLS = 150  # of a body, that a fit looks at
_STEEPNESS = 4.0  # of an ellipse's edge
_MISFIT = 4.0  # cells that do not fit, that weigh as much as one deviation


@dataclass(frozen=True)
class Shape:
    """What an animal usually is like: half of its length, half of its width and its area, in pixels."""

    half_length: float
    half_width: float
    area: float

    @property
    def length(self) -> float:
        """The length in pixels."""
        return 2 * self.half_length

    @property
    def deviations(self) -> Floats:
        """Those of a body's values between two frames, in pixels and radians."""
        return np.concatenate([STEPS[:2] * self.length, STEPS[2:]])


def measure_axis(points: Floats) -> tuple[Floats, float, Floats]:
    """Return the mean (2,) of points (n, 2), the angle of their axis, and the variances (2,) along and across it."""
    mean = points.mean(0)
    apart = points - mean
    variances, axes = np.linalg.eigh(apart.T @ apart / len(points))
    return mean, float(np.arctan2(axes[1, 1], axes[0, 1])), variances[::-1]


def nearest_angle(angle: float, other: float) -> float:
    """Return the angle of an axis, which half circles may be added to, that is nearest to another angle."""
    return angle - np.pi * round((angle - other) / np.pi)


def outline(values: Floats, shape: Shape) -> Floats:
    """Return points (32, 2) of the edge of a body (5,)."""
    x, y, angle, bend, stretch = values.tolist()
    around = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    a, b = shape.half_length * np.exp(stretch), shape.half_width * np.exp(-stretch)
    along = a * np.cos(around)
    across = b * np.sin(around) + bend * a * (np.cos(around) ** 2 - 1 / 3)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x + along * cos - across * sin, y + along * sin + across * cos], axis=1)


def _cover(values: Floats, x: Floats, y: Floats, shape: Shape) -> Floats:
    """Return how much of each cell (n,) the bodies (..., 5) cover: (..., n)."""
    centre_x, centre_y, angle, bend, stretch = np.moveaxis(values, -1, 0)[..., None]
    dx, dy, cos, sin = x - centre_x, y - centre_y, np.cos(angle), np.sin(angle)
    a, b = shape.half_length * np.exp(stretch), shape.half_width * np.exp(-stretch)
    along = (dx * cos + dy * sin) / a
    across = (dy * cos - dx * sin - bend * a * (along**2 - 1 / 3)) / b
    covered: Floats = 1 / (1 + np.exp(np.minimum(_STEEPNESS * (along**2 + across**2 - 1), 30)))
    return covered


def fit_bodies(points: Floats, priors: Floats, shape: Shape) -> tuple[Floats, float, float]:
    """Fit bodies so that together they cover a blob and nothing else, by Levenberg and Marquardt's method.

    Bodies may lie on each other: what two of them cover counts once.

    Args:
        points: (n, 2), the blob's pixels.
        priors: (k, 5), the bodies as they are expected.

    Returns:
        The bodies (k, 5), their cost, as twice a negative logarithm of a likelihood, and the share of the blob's area
        that is covered wrongly.
    """
    count, deviations = len(priors), np.tile(shape.deviations, len(priors))
    cell = max(1, round((shape.area / _CELLS) ** 0.5))
    corner = points.min(0) - 2 * cell
    columns, rows = ((points.max(0) - corner) // cell + 3).astype(int).tolist()
    places = ((points - corner) // cell).astype(int)
    truth = np.bincount(places[:, 1] * columns + places[:, 0], minlength=rows * columns) / cell**2
    row, column = np.divmod(np.arange(rows * columns), columns)
    x, y = (start + cell * index + (cell - 1) / 2 for start, index in zip(corner, (column, row), strict=True))

    def find_residuals(values: Floats) -> Floats:
        """Return those of bodies (m, k, 5): (m, cells + 7 k)."""
        wrong = 1 - np.prod(1 - _cover(values, x, y, shape), axis=-2) - truth
        steps = (values - priors).reshape(len(values), -1) / deviations
        unusual = (values[..., 3:] / _USUAL).reshape(len(values), -1)
        return np.concatenate([wrong / _MISFIT**0.5, steps, unusual], axis=1)

    values, damping = priors.copy(), 0.1
    moves = np.diag(0.05 * deviations).reshape(-1, count, VALUES)
    for _ in range(_ROUNDS):
        residuals = find_residuals(np.concatenate([values[None], values + moves]))
        now = residuals[0]
        jacobian = (residuals[1:] - now) / 0.05  # by deviations
        step = np.linalg.solve(jacobian @ jacobian.T + damping * np.eye(len(jacobian)), -jacobian @ now)
        moved = values + (np.clip(step, -3, 3) * deviations).reshape(count, VALUES)
        is_better = (find_residuals(moved[None])[0] ** 2).sum() < (now**2).sum()
        values, damping = (moved, damping / 3) if is_better else (values, damping * 10)
    residuals = find_residuals(values[None])[0]
    wrong = np.abs(residuals[: len(truth)]).sum() * _MISFIT**0.5 / truth.sum()
    return values, float((residuals**2).sum()), float(wrong)
