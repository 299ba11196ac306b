"""Score a trained model on the job's labelled pictures, by every protocol that applies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from model.data import Images
from model.predictor import Predictor
from model.scoring.protocols import evaluate
from worker.uploads.label_matching import LabelledPictures

_BATCH_SIZE = 32


def evaluate_labelled(
    predictor: Predictor, images: Images, labelled: LabelledPictures, check: Callable[[float], object]
) -> dict[str, Any]:
    """Return the errors of a model on a job's labelled pictures, without refinement.

    Args:
        images: all prepared pictures of the job (N, S, S, 3).
        check: called before each batch with the fraction done; its exceptions end the evaluation.

    Returns:
        The result of `model.scoring.protocols.evaluate`, or only its "reason" if the labels can't be scored, with
        "keypoint_names", "labels_without_picture" and "split_from": "labels", or "names" if the labels have no split
        and a fifth of the pictures was held out by a hash of their names.
    """
    batches = []
    for first in range(0, len(labelled.pictures), _BATCH_SIZE):
        check(first / len(labelled.pictures))
        batch = np.ascontiguousarray(images[labelled.pictures[first : first + _BATCH_SIZE]])
        batches.append(predictor.predict(batch).keypoints)
    keypoints = (np.concatenate(batches).astype(np.float64) + 1) / 2
    train, heldout = (
        (keypoints[rows], labelled.keypoints[rows], labelled.visibility[rows])
        for rows in (~labelled.heldout, labelled.heldout)
    )
    facts = {
        "keypoint_names": list(labelled.keypoint_names),
        "split_from": labelled.split_from,
        "labels_without_picture": labelled.without_picture,
    }
    try:
        return evaluate(train, heldout, labelled.swap) | facts
    except ValueError as error:  # e.g. no keypoint is visible in both splits; the version is valid all the same
        return {"reason": str(error)} | facts
