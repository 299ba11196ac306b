"""Measure a trained model: the protocols at several refinements, occlusion curves, and the skeleton of its prior."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.predictor import Predictor
from model.scoring.linear_maps import Split, fit_maps
from model.scoring.occlusion import cover, levels, occlusion_row, verdict
from model.scoring.protocols import evaluate, sides
from model.scoring.skeleton import skeleton_scores
from model.version.prior import PosePrior

from .packs import Pack, Part

REFINE_STEPS = 3  # the paper's number of iterations
_SCORED = (0, 1, REFINE_STEPS)
_BATCH = 64


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
        training pictures that are not refined. "scores_own_maps": the same with maps fitted on training pictures
        that are refined as often. Without a memory there are only those without refinement. "occlusion" and
        "refinement": the table and the verdict of ``model/scoring/occlusion.py``. "skeleton": the scores of
        ``model/scoring/skeleton.py`` from the unrefined poses of the held-out pictures, if the true one is known.
    """
    if not pack.is_labelled:
        return {}
    most = REFINE_STEPS if predictor.model.memory is not None else 0
    train, test = (in_unit(predict_trajectories(predictor, part.images, most)) for part in (pack.train, pack.test))
    heldout = {n: _split(test[:, n], pack.test) for n in _SCORED if n <= most}
    swap = _swap(pack)
    unrefined = _split(train[:, 0], pack.train)
    maps = fit_maps(*unrefined)
    rows = []
    for kind, level, hidden in levels(len(pack.test.images)):
        poses = in_unit(predict_trajectories(predictor, cover(pack.test.images, hidden), most))
        rows.append(occlusion_row(kind, level, hidden, poses, pack.test.keypoints, pack.test.visibility, maps))
    own = {n: evaluate(_split(train[:, n], pack.train), held, swap) for n, held in heldout.items() if n}
    return {
        "scores": {str(n): evaluate(unrefined, held, swap) for n, held in heldout.items()},
        "scores_own_maps": {str(n): scores for n, scores in own.items()} or None,
        "occlusion": rows,
        "refinement": verdict(rows) if most else None,
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
