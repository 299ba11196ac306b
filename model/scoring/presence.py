"""The probability that a picture shows the category at all, from what the model sees of it. Numpy only.

Four signals are combined by a logistic regression: the mean score of the keypoints, the entropy of their attention, the
distance of the pose to the memory, and the distance of what lies under the keypoints to what lay there in training
pictures (Mahalanobis). No signal is enough: an empty scene may have a pose as ordinary as any.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FORMAT = 1  # of presence.json
MAX_SIZE = 512  # of a description of what lies under the keypoints
_SHRINKAGE = 0.1  # of the covariance towards its diagonal
_PENALTY = 3.0  # on squared weights
_FAR = 8.0  # standard deviations; more says no more
_TINY = 1e-9


@dataclass(frozen=True)
class Presence:
    """A calibrated estimate of whether the thing is there.

    Attributes:
        mean: (D,) of the descriptions of training pictures; precision: (D, D), the inverse of their covariance.
        centre: (4,) means of the signals over training pictures; scale: (4,) their standard deviations.
        weights: (5,) of the signals and the bias.
    """

    mean: Array
    precision: Array
    centre: Array
    scale: Array
    weights: Array

    @classmethod
    def fit(cls, present: Array, absent: Array) -> Presence:
        """Fit to evidence (N, 3 + D) of training pictures and of made pictures without the thing.

        The columns are mean score, entropy, distance to the memory, and description. One half of the training pictures
        says what is ordinary, the other half what is likely.
        """
        ordinary, others = present[::2, 3:], present[1::2]
        covariance = np.atleast_2d(np.cov(ordinary.T))
        floor = _TINY + 1e-6 * np.trace(covariance)
        covariance = (1 - _SHRINKAGE) * covariance + np.diag(_SHRINKAGE * np.diag(covariance) + floor)
        precision: Array = np.linalg.inv(covariance).astype(np.float64)
        unscaled = cls(ordinary.mean(0), precision, np.zeros(4), np.ones(4), np.zeros(5))
        signals = unscaled._signals(others)
        centre, scale = signals.mean(0), signals.std(0) + 1e-6
        scaled = cls(unscaled.mean, precision, centre, scale, np.zeros(5))
        values = np.concatenate((scaled._standardised(others), scaled._standardised(absent)))
        weights = _fit_logistic(values, np.arange(len(values)) < len(others))
        return cls(unscaled.mean, precision, centre, scale, weights)

    def probability(self, evidence: Array) -> Array:
        """Return the probability for each row of evidence (N, 3 + D), where half of all pictures show the thing."""
        logits: Array = self._standardised(evidence) @ self.weights
        probability: Array = 1 / (1 + np.exp(-logits.clip(-30, 30)))
        return probability

    def _signals(self, evidence: Array) -> Array:
        score = evidence[:, 0].clip(1e-4, 1 - 1e-4)
        apart = evidence[:, 3:] - self.mean
        strange = np.einsum("nd,de,ne->n", apart, self.precision, apart).clip(0)
        signals = (np.log(score / (1 - score)), evidence[:, 1], np.log(evidence[:, 2] + 1e-4), np.log(strange + _TINY))
        return np.stack(signals, axis=1)

    def _standardised(self, evidence: Array) -> Array:
        values = ((self._signals(evidence) - self.centre) / self.scale).clip(-_FAR, _FAR)
        return np.column_stack((values, np.ones(len(values))))

    def to_json(self) -> dict[str, Any]:
        """Return presence.json."""
        return {"format": FORMAT, **{name: value.astype(np.float32).tolist() for name, value in asdict(self).items()}}

    @classmethod
    def from_json(cls, document: Any) -> Presence:
        """Read what :meth:`to_json` returned. Raises ValueError for anything else."""
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        try:
            parts = {name: np.asarray(document[name], dtype=np.float64) for name in cls.__annotations__}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a part of it is missing or not of numbers: {error}") from error
        size = len(parts["mean"]) if parts["mean"].ndim == 1 else 0
        shapes = {"mean": (size,), "precision": (size, size), "centre": (4,), "scale": (4,), "weights": (5,)}
        for name, shape in shapes.items():
            if parts[name].shape != shape or not np.isfinite(parts[name]).all() or not 0 < size <= MAX_SIZE:
                raise ValueError(f"its {name} has the shape {parts[name].shape}; expected {shape} finite numbers")
        if not (parts["scale"] > 0).all():
            raise ValueError("its scale has a number that is not above 0")
        return cls(**parts)


def _fit_logistic(values: Array, positive: NDArray[np.bool_]) -> Array:
    """Fit weights (D,) to values (N, D), the last column being ones; both classes weigh the same. Newton's method."""
    total = len(values)
    importance = np.where(positive, total / 2 / positive.sum(), total / 2 / (~positive).sum())
    penalty = np.diag([_PENALTY] * (values.shape[1] - 1) + [1e-6])
    weights = np.zeros(values.shape[1])
    for _ in range(30):
        probability = 1 / (1 + np.exp(-(values @ weights).clip(-30, 30)))
        gradient = values.T @ (importance * (probability - positive)) + penalty @ weights
        curvature = importance * (probability * (1 - probability) + _TINY)
        weights = weights - np.linalg.solve((values * curvature[:, None]).T @ values + penalty, gradient)
    return weights
