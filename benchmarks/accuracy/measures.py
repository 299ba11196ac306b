"""Measure a trained model: the protocols at several refinements, occlusion curves, and the skeleton of its prior."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.predictor import Predictor
from model.scoring.linear_maps import Array, Split, fit_maps
from model.scoring.occlusion import cover, levels, occlusion_row, verdict
from model.scoring.protocols import evaluate, headline, sides
from model.scoring.skeleton import skeleton_scores
from model.version.prior import PosePrior

from .packs import Pack, Part

REFINE_STEPS = 3  # the paper's number of iterations
_SCORED = (0, 1, REFINE_STEPS)
_BATCH = 64
OCCLUDED = 128  # pictures that parts are hidden of, at most


def mean_pose(pack: Pack) -> dict[str, Any]:
    """Return the scores of a constant prediction; a linear map of it is the mean training pose."""
    if not pack.is_labelled:
        raise ValueError(f"{pack.name} has no labels to take the mean of")
    same = [np.full((len(part.images), 1, 2), 0.5) for part in (pack.train, pack.test)]
    return {"scores": {"0": evaluate(_split(same[0], pack.train), _split(same[1], pack.test), _swap(pack))}}


def measure(predictor: Predictor, prior: PosePrior, pack: Pack) -> dict[str, Any]:
    """Measure a model on a set; a set without labels gives no scores.

    Args:
        prior: the prior of the model's version; AutoLink's is the mean of its poses.

    Returns:
        "scores": by the number of refinements of the held-out pictures, every protocol; the maps are fitted on
        training pictures that are not refined. Without a memory there are only those without refinement.
        "prior_off": the headline of the same weights without refinement and without the transformed prior, with maps
        of its own; None where there is none. "occlusion" and "refinement": the table and the verdict of
        ``model/scoring/occlusion.py`` on ``OCCLUDED`` held-out pictures, evenly spaced (all would take a quarter of
        the time of a training), with the change on clean pictures from all of them. "skeleton": the scores of
        ``model/scoring/skeleton.py`` from the unrefined poses of the held-out pictures, if the true one is known.
    """
    if not pack.is_labelled:
        return {}
    most = REFINE_STEPS if predictor.model.memory is not None else 0
    train = _split(_predict(predictor, pack.train.images)[:, 0], pack.train)
    test = _predict(predictor, pack.test.images, most)
    heldout = {n: _split(test[:, n], pack.test) for n in _SCORED if n <= most}
    swap = _swap(pack)
    rows = _occlusion_rows(predictor, pack.test, test, fit_maps(*train))
    scores = {str(n): evaluate(train, held, swap) for n, held in heldout.items()}
    refinement = verdict(rows) if most else None
    if refinement:
        first, last = (scores[str(n)]["headline"]["error_percent"] for n in (0, REFINE_STEPS))
        refinement["clean_change"] = last - first
    return {
        "scores": scores,
        "prior_off": _without_prior(predictor, pack),
        "occlusion": rows,
        "refinement": refinement,
        "skeleton": skeleton_scores(
            prior.keypoint_prior.double().numpy(),
            prior.link_weights.double().numpy(),
            *heldout[0],
            pack.edges,
            skeleton=prior.skeleton,
        )
        if pack.edges
        else None,
    }


def _occlusion_rows(predictor: Predictor, test: Part, clean: Array, maps: Array) -> list[dict[str, Any]]:
    """Measure each level; ``clean`` are the trajectories (N, T + 1, K, 2) of the pictures without one."""
    count = len(test.images)
    chosen = np.linspace(0, count - 1, min(count, OCCLUDED)).round().astype(int)
    images, labels, visibility = test.images[chosen], test.keypoints[chosen], test.visibility[chosen]
    rows = []
    for kind, level, hidden in levels(len(images)):
        poses = clean[chosen]
        if hidden.any():
            poses = _predict(predictor, cover(images, hidden), clean.shape[1] - 1)
        rows.append(occlusion_row(kind, level, hidden, poses, labels, visibility, maps))
    return rows


def _without_prior(predictor: Predictor, pack: Pack) -> dict[str, Any] | None:
    """Return the headline of the attention's mean positions; None if the head adds nothing to them or replaces them."""
    regressor = predictor.model.regressor
    if regressor.head != "residual":
        return None
    scale, regressor.head_scale = regressor.head_scale, 0.0
    try:
        train, test = (_split(_predict(predictor, part.images)[:, 0], part) for part in (pack.train, pack.test))
    finally:
        regressor.head_scale = scale
    return headline(train, test)


def _predict(predictor: Predictor, images: NDArray[np.uint8], refine_steps: int = 0) -> Array:
    return in_unit(predict_trajectories(predictor, images, refine_steps))


def predict_trajectories(predictor: Predictor, images: NDArray[np.uint8], refine_steps: int) -> NDArray[np.float64]:
    """Estimate the poses of squares at each iteration: (N, T + 1, K, 2) in [-1, 1]."""
    chunks = [images[first : first + _BATCH] for first in range(0, len(images), _BATCH)]
    return np.concatenate([predictor.predict(chunk, refine_steps).trajectory for chunk in chunks]).astype(np.float64)


def in_unit(keypoints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert from [-1, 1] to [0, 1], the range of labels."""
    return (keypoints + 1) / 2


def _split(keypoints: NDArray[np.float64], part: Part) -> Split:
    return keypoints, part.keypoints, part.visibility


def _swap(pack: Pack) -> tuple[int, ...] | None:
    return sides(pack.keypoint_names)
