"""Compare a learned prior with the true skeleton. Numpy only.

A link is **strong** if it is one of those that one would draw, or, where these are not given, if its weight is at least
a share (0.25) of the strongest link's. A learned keypoint may lie between two joints, so there are two criteria for a
correct link:

- **geometric**: a link follows the skeleton in a picture if at least 80 % of its length lies within 5 % of the image
  side of a true limb. Precision: how often strong links follow, over all pictures. Recall: the share of the true
  limbs' length, over all pictures, that lies within 5 % of a strong link.
- **matched**: keypoints are matched to joints one to one, by the least mean distance, at most 10 % of the side. A
  strong link is correct if the path along the skeleton between its joints has at most three limbs and passes no joint
  with a keypoint of its own; one with an unmatched end is wrong. Recall: the share of limbs on the path of a correct
  link.

"chance_precision" is the precision of all links, strong or not: on a slim animal many links follow by chance.

**Procrustes**: the distance of the keypoint prior from the mean true pose (each joint's mean position) without
position, size and rotation, but not mirrored: sqrt(1 - s²), with s the best alignment of the two sets scaled to unit
norm; 0 means equal, 1 unrelated. "mapped" maps the prior to the joints by
:func:`model.scoring.linear_maps.fit_maps` with bias. Uninformative keypoints would map to the mean pose for any prior,
so "matched" compares the matched keypoints directly, if there are at least three. "typical" is the mean distance of a
true pose from the mean pose.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear_maps import Array, apply_maps, check_split, fit_maps, mean_pose
from .matching import Edges, Matching, limbs_of, match_joints

STRONG = 0.25
TOLERANCE = 0.05
FOLLOWING = 0.8
MAX_MATCH_DISTANCE = 0.1
MAX_LIMBS = 3
_MIN_EXTENT = 1e-9
_SAMPLES = 32  # points along a link or limb
_MAX_PICTURES = 512  # for the geometric scores, evenly spaced


def skeleton_scores(
    keypoint_prior: Array,
    link_weights: Array,
    keypoints: Array,
    labels: Array,
    visibility: Array,
    edges: Edges,
    *,
    strong: float = STRONG,
    skeleton: Collection[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Return all scores of one learned prior.

    Args:
        keypoint_prior: (K, 2) in [-1, 1].
        link_weights: (L,), at least 0, over the pairs i < j in row-major order.
        keypoints: (N, K, 2) learned keypoints of the pictures in [0, 1].
        labels: (N, J, 2) true joints in [0, 1].
        visibility: (N, J), non-zero where a joint's place is known; in a rendered set also where it is occluded.
        edges: pairs of joints, the true limbs.
        strong: the share of the strongest weight that makes a link strong.
        skeleton: the strong links instead, if there are any.

    Returns:
        "strong_links" as [[i, j, weight, share of pictures where it follows], …] by descending weight, "geometric",
        "matched" and "procrustes".

    Raises:
        ValueError: shapes do not match, there are no limbs, or no picture has a limb with both ends known.
    """
    check_split(keypoints, labels, visibility)
    count, joints = keypoints.shape[1], labels.shape[1]
    if keypoint_prior.shape != (count, 2) or link_weights.shape != (count * (count - 1) // 2,):
        raise ValueError(f"a prior of {keypoint_prior.shape} and {len(link_weights)} links; expected {count} keypoints")
    if not edges or not all(0 <= end < joints for edge in edges for end in edge):
        raise ValueError(f"the skeleton is {list(edges)[:3]}…; expected pairs from 0 to {joints - 1}")
    if not (np.isfinite(link_weights).all() and (link_weights >= 0).all() and link_weights.max() > 0 < strong <= 1):
        raise ValueError("expected finite link weights of at least 0, one above 0, and 'strong' above 0 and at most 1")
    links = np.stack(np.triu_indices(count, 1), axis=1)
    is_strong = link_weights >= strong * link_weights.max()
    if skeleton:
        is_strong = np.array([tuple(link) in skeleton for link in links.tolist()])
    matching = match_joints(keypoints, labels, visibility, MAX_MATCH_DISTANCE)
    follows, geometric = _geometric_scores(links, is_strong, keypoints, labels, visibility, edges)
    by_weight = [int(link) for link in np.argsort(-link_weights, kind="stable") if is_strong[link]]
    return {
        "strong_links": [[*links[n].tolist(), float(link_weights[n]), float(follows[n])] for n in by_weight],
        "geometric": geometric,
        "matched": _matched_scores(links, is_strong, matching, edges),
        "procrustes": _procrustes_scores((keypoint_prior + 1) / 2, matching, keypoints, labels, visibility),
    }


def procrustes(points: Array, truth: Array) -> tuple[float, float]:
    """Return the Procrustes distance of two point sets (P, 2), see the module's docstring, and the residual.

    The distance is 1 if all ``points`` are the same. The residual is the root mean square per point once ``points`` is
    aligned with ``truth``, in units of ``truth``, whose points must differ.
    """
    a, b = points - points.mean(0), truth - truth.mean(0)
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    if norm_b < _MIN_EXTENT:
        raise ValueError("all true points are the same; expected a shape")
    product = (a / max(norm_a, _MIN_EXTENT)).T @ (b / norm_b)
    singular = np.linalg.svd(product, compute_uv=False)
    alignment = singular[0] + np.sign(np.linalg.det(product)) * singular[1]
    distance = float(np.sqrt(max(0.0, 1 - alignment**2)))
    return distance, float(distance * norm_b / np.sqrt(len(b)))


def _geometric_scores(
    links: NDArray[np.int64],
    strong: NDArray[np.bool_],
    keypoints: Array,
    labels: Array,
    visibility: Array,
    edges: Edges,
) -> tuple[Array, dict[str, float]]:
    """Return the share of pictures where each link follows (L,), and the scores."""
    ends = np.array(edges)
    known: NDArray[np.bool_] = np.logical_and.reduce(visibility[:, ends] > 0, axis=2)
    rows = np.flatnonzero(known.any(1))
    if not len(rows):
        raise ValueError("no limb has both of its ends known in any picture")
    rows = rows[np.linspace(0, len(rows) - 1, min(_MAX_PICTURES, len(rows))).round().astype(int)]
    limbs = np.where(np.expand_dims(known[rows], (2, 3)), labels[rows][:, ends], np.inf)
    drawn = keypoints[rows][:, links]
    share = np.stack([_lies_within(drawn[:, link], limbs).mean(1) for link in range(len(links))], axis=1)
    follows = share >= FOLLOWING
    length = np.linalg.norm(drawn[..., 1, :] - drawn[..., 0, :], axis=-1)
    covered, total = 0.0, 0.0
    for limb in range(len(ends)):
        here = known[rows, limb]
        pieces = limbs[here, limb]
        weight = np.linalg.norm(pieces[:, 1] - pieces[:, 0], axis=-1)
        covered += float((weight * _lies_within(pieces, drawn[here][:, strong]).mean(1)).sum())
        total += float(weight.sum())
    precision, recall = float(follows[:, strong].mean()), covered / total if total else 0.0
    return follows.mean(0), {
        "precision": precision,
        "recall": recall,
        "f1": _f1(precision, recall),
        "precision_by_length": float((share * length)[:, strong].sum() / max(length[:, strong].sum(), 1e-12)),
        "chance_precision": float(follows.mean()),
    }


def _lies_within(pieces: Array, segments: Array) -> NDArray[np.bool_]:
    """Return which of P points along a piece (n, 2, 2) lie within the tolerance of a segment (n, E, 2, 2): (n, P).

    Segments with infinite coordinates are unknown and near nothing.
    """
    t = ((np.arange(_SAMPLES) + 0.5) / _SAMPLES)[:, None]
    points = pieces[:, None, 0] * (1 - t) + pieces[:, None, 1] * t  # (n, P, 2)
    near = np.zeros(points.shape[:2], dtype=np.bool_)
    for segment in range(segments.shape[1]):
        start, end = segments[:, None, segment, 0], segments[:, None, segment, 1]
        known = np.logical_and.reduce(np.isfinite(start), axis=-1)
        start, end = (np.where(np.expand_dims(known, -1), place, 0) for place in (start, end))
        along = end - start
        square = (along**2).sum(-1).clip(1e-18)
        part = (((points - start) * along).sum(-1) / square).clip(0, 1)
        apart = np.linalg.norm(points - start - part[..., None] * along, axis=-1)
        near |= known & (apart <= TOLERANCE)
    return near


def _matched_scores(
    links: NDArray[np.int64], strong: NDArray[np.bool_], matching: Matching, edges: Edges
) -> dict[str, Any]:
    paths = [limbs_of(i, j, matching.joint_of, edges, MAX_LIMBS) for i, j in links.tolist()]
    correct = np.array([path is not None for path in paths])
    covered = {limb for path, is_strong in zip(paths, strong, strict=True) if path and is_strong for limb in path}
    precision, recall = float(correct[strong].mean()), len(covered) / len(edges)
    distances = matching.distance[matching.joint_of >= 0]
    return {
        "precision": precision,
        "recall": recall,
        "f1": _f1(precision, recall),
        "chance_precision": float(correct.mean()),
        "joint_of": [int(joint) if joint >= 0 else None for joint in matching.joint_of],
        "mean_distance_percent": float(100 * distances.mean()) if len(distances) else None,
    }


def _procrustes_scores(
    prior: Array, matching: Matching, keypoints: Array, labels: Array, visibility: Array
) -> dict[str, Any]:
    seen = np.flatnonzero((visibility > 0).any(0))
    mean = mean_pose(labels, visibility)
    mapped = apply_maps(prior[None], fit_maps(keypoints, labels[:, seen], visibility[:, seen]))[0]
    complete = labels[:, seen][(visibility[:, seen] > 0).all(1)]
    typical = [procrustes(pose, mean[seen])[0] for pose in complete]
    chosen = np.flatnonzero(matching.joint_of >= 0)
    scores = {"mapped": _procrustes_score(mapped, mean[seen])}
    if len(chosen) >= 3:
        scores["matched"] = _procrustes_score(prior[chosen], mean[matching.joint_of[chosen]])
    return scores | {"typical": float(np.mean(typical)) if typical else None, "matched_keypoints": len(chosen)}


def _procrustes_score(points: Array, truth: Array) -> dict[str, float]:
    distance, residual = procrustes(points, truth)
    return {"distance": distance, "residual_percent": 100 * residual}


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
