"""What a trained model is worth: its keypoints on the job's labelled pictures, scored by every protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from model.data import Images
from model.predictor import Predictor
from model.scoring.protocols import evaluate
from worker.uploads.label_matching import Labelled

_AT_ONCE = 32  # pictures


def evaluate_labelled(
    predictor: Predictor, images: Images, labelled: Labelled, check: Callable[[float], object]
) -> dict[str, Any]:
    """The errors of a model on a job's labelled pictures, without refinement.

    Args:
        images: all prepared pictures of the job (N, S, S, 3).
        check: told between batches what part is done; what it raises ends it.

    Returns:
        As :func:`model.scoring.protocols.evaluate`, with "keypoint_names", "split_from" ("labels", or "names" where the
        labels gave no split and a fifth of the pictures was held out by a hash of the names), and
        "labels_without_picture". Only "reason" where the labels can't be scored.
    """
    found = []
    for first in range(0, len(labelled.pictures), _AT_ONCE):
        check(first / len(labelled.pictures))
        batch = np.ascontiguousarray(images[labelled.pictures[first : first + _AT_ONCE]])
        found.append(predictor.predict(batch).keypoints)
    keypoints = (np.concatenate(found).astype(np.float64) + 1) / 2
    train, heldout = (
        (keypoints[rows], labelled.keypoints[rows], labelled.visibility[rows])
        for rows in (~labelled.heldout, labelled.heldout)
    )
    told = {
        "keypoint_names": list(labelled.keypoint_names),
        "split_from": labelled.split_from,
        "labels_without_picture": labelled.without_picture,
    }
    try:
        return {**evaluate(train, heldout, labelled.swap), **told}
    except ValueError as error:  # such as no keypoint that is visible in both splits: the version is good all the same
        return {"reason": str(error), **told}
