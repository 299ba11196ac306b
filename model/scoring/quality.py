"""Judge how good a version is, from measures without labels (:mod:`model.quality`). Numpy only.

The thresholds were fixed on versions whose labelled errors are known, and tried on others: docs/method.md.
``python -m benchmarks.accuracy.quality`` does both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_STILL = 1.0  # percent of the side
_LOST, _WEAK = 0.05, 0.15  # scores below which a version has failed, or is doubtful
_UNSURE = 0.2  # mean score of the keypoints
_FEW = 60  # pictures

_ADVICE = {
    "still": "the skeleton hardly moves: the thing is probably small or wanders; send boxes, or a video",
    "lost": "keypoints do not follow what the pictures show: train for more steps; if that does not help, send "
    "pictures of one kind of thing, cut out around it",
    "few": "so few pictures may teach what holds for them alone; send some hundreds",
    "unsure": "keypoints have no clear place: train for more steps; if that does not help, send pictures of one kind "
    "of thing",
    "weak": "keypoints follow what the pictures show only in part: look at the preview, train for more steps, or cut "
    "the pictures out more tightly",
    "idle": "more than half of the keypoints do nothing: train for more steps, or with fewer keypoints",
    "good": "keypoints follow what the pictures show; look at some estimates before you rely on it",
}


def judge(measures: Mapping[str, Any], num_pictures: int, num_keypoints: int) -> dict[str, Any]:
    """Return the verdict on a version's measures: "verdict", "advice" and "score", from 0 to 1.

    Args:
        measures: "agreement", "movement_percent", "idle_keypoints" and "mean_score".
        num_pictures: it was trained on.
        num_keypoints: K.

    A measure that is not a number counts as 0: such a version is of no use.
    """
    score = float(np.clip(np.nan_to_num(measures["agreement"]), 0, 1))
    movement, mean_score = (np.nan_to_num(measures[name]) for name in ("movement_percent", "mean_score"))
    faults = {  # the first counts
        "still": movement < _STILL,
        "few": num_pictures < _FEW,  # before "lost": on so few pictures the agreement is underestimated
        "lost": score < _LOST,
        "unsure": mean_score < _UNSURE,
        "weak": score < _WEAK,
        "idle": 2 * len(measures["idle_keypoints"]) > num_keypoints,
    }
    fault = next((name for name, found in faults.items() if found), "good")
    verdict = {"still": "failed", "lost": "failed", "good": "good"}.get(fault, "doubtful")
    return {"verdict": verdict, "advice": _ADVICE[fault], "score": round(score, 4)}
