"""Match learned keypoints to true joints, and learned links to limbs. Numpy only."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .linear_maps import Array

Edges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Matching:
    """A one-to-one matching: the joint (K,) of each keypoint, -1 if unmatched, and the mean distance (K,) to it.

    Distances are in parts of the image side; inf if unmatched.
    """

    joint_of: NDArray[np.int64]
    distance: Array


def match_joints(keypoints: Array, labels: Array, visibility: Array, max_distance: float) -> Matching:
    """Return the one-to-one matching of minimal total mean distance, without pairs that are too far apart.

    The mean distance to a joint is over the pictures of the Split where it is visible; that of a match is at most
    ``max_distance``, in parts of the image side.
    """
    seen = visibility > 0
    usable = np.flatnonzero(seen.any(0))
    cost = np.zeros((keypoints.shape[1], len(usable)))
    for column, joint in enumerate(usable):
        rows = seen[:, joint]
        cost[:, column] = np.linalg.norm(keypoints[rows] - labels[rows, None, joint], axis=-1).mean(0)
    joint_of = np.full(len(cost), -1, dtype=np.int64)
    distance = np.full(len(cost), np.inf)
    for keypoint, column in zip(*assign(cost), strict=True):
        if cost[keypoint, column] <= max_distance:
            joint_of[keypoint], distance[keypoint] = usable[column], cost[keypoint, column]
    return Matching(joint_of, distance)


def assign(cost: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the assignment of minimal total cost (n, m), finite: rows, ascending, and the column of each.

    The Hungarian method with potentials, one shortest augmenting path per row: O(n²m).
    """
    if cost.ndim != 2 or not np.isfinite(cost).all():
        raise ValueError(f"cost has shape {cost.shape}; expected a finite matrix")
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    count, width = cost.shape
    u, v = np.zeros(count + 1), np.zeros(width + 1)
    row_of = np.zeros(width + 1, dtype=np.int64)  # 1-based; column 0 holds the row to be assigned
    for row in range(1, count + 1):
        row_of[0], column = row, 0
        least = np.full(width + 1, np.inf)
        previous = np.zeros(width + 1, dtype=np.int64)
        used = np.zeros(width + 1, dtype=np.bool_)
        while row_of[column]:
            used[column] = True
            free = ~used
            reduced = cost[row_of[column] - 1] - u[row_of[column]] - v[1:]
            better = free[1:] & (reduced < least[1:])
            least[1:][better], previous[1:][better] = reduced[better], column
            following = int(np.argmin(np.where(free, least, np.inf)[1:])) + 1
            step = least[following]
            u[row_of[used]] += step
            v[used] -= step
            least[free] -= step
            column = following
        while column:
            row_of[column] = row_of[previous[column]]
            column = int(previous[column])
    taken = np.flatnonzero(row_of[1:])
    rows = row_of[1:][taken] - 1
    order = np.argsort(rows)
    return rows[order], taken[order]


def limbs_of(i: int, j: int, joint_of: NDArray[np.int64], edges: Edges, max_limbs: int) -> list[int] | None:
    """Return the limbs, as indices of edges, that a link between keypoints i and j follows, or None.

    Both keypoints must have a joint, and the shortest path between the two along the skeleton must have at most
    ``max_limbs`` limbs and pass no joint that has a keypoint of its own.
    """
    start, goal = int(joint_of[i]), int(joint_of[j])
    if start < 0 or goal < 0:
        return None
    taken = {int(joint) for joint in joint_of if joint >= 0} - {start, goal}
    queue: deque[tuple[int, list[int]]] = deque([(start, [])])
    reached = {start}
    while queue:
        joint, path = queue.popleft()
        if joint == goal:
            return path or None
        if len(path) == max_limbs or joint in taken:
            continue
        for index, (a, b) in enumerate(edges):
            for here, there in ((a, b), (b, a)):
                if here == joint and there not in reached:
                    reached.add(there)
                    queue.append((there, [*path, index]))
    return None
