"""Which learned keypoint stands for which true joint, and which learned links are limbs by that. Numpy only."""

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
    """One joint at most for a keypoint, and one keypoint at most for a joint.

    Attributes:
        joint_of: (K,) the joint of each keypoint, -1 where it has none.
        distance: (K,) mean distance to that joint over the pictures, in parts of the image side; inf where none.
    """

    joint_of: NDArray[np.int64]
    distance: Array


def match_joints(keypoints: Array, labels: Array, visibility: Array, most_distance: float) -> Matching:
    """The one-to-one matching of least summed mean distance (exact), less its pairs that are too far apart.

    Args:
        keypoints: (N, K, 2) in [0, 1].
        labels: (N, J, 2) in [0, 1].
        visibility: (N, J); the mean distance to a joint is over the pictures where it is visible.
        most_distance: a pair farther apart than this on average is no match, in parts of the image side.
    """
    seen = visibility > 0
    truth = np.where(seen[..., None], labels, 0)
    cost = np.full((keypoints.shape[1], labels.shape[1]), np.inf)
    for joint in np.flatnonzero(seen.any(0)):
        rows = seen[:, joint]
        cost[:, joint] = np.linalg.norm(keypoints[rows] - truth[rows, None, joint], axis=-1).mean(0)
    usable = np.flatnonzero(seen.any(0))
    joint_of = np.full(len(cost), -1, dtype=np.int64)
    distance = np.full(len(cost), np.inf)
    for keypoint, column in zip(*assign(cost[:, usable]), strict=True):
        joint = usable[column]
        if cost[keypoint, joint] <= most_distance:
            joint_of[keypoint], distance[keypoint] = joint, cost[keypoint, joint]
    return Matching(joint_of, distance)


def assign(cost: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The assignment of least total cost: as many pairs of row and column as the shorter side has.

    The Hungarian method with potentials, growing one shortest augmenting path a row: O(n²m).

    Args:
        cost: (n, m), finite.

    Returns:
        Rows in rising order, and the column of each.

    Raises:
        ValueError: a cost is not finite.
    """
    if cost.ndim != 2 or not np.isfinite(cost).all():
        raise ValueError(f"cost has shape {cost.shape}; expected a finite matrix")
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    count, width = cost.shape
    u, v = np.zeros(count + 1), np.zeros(width + 1)
    row_of = np.zeros(width + 1, dtype=np.int64)  # 1-based; column 0 holds the row that seeks a place
    for row in range(1, count + 1):
        row_of[0], column = row, 0
        least = np.full(width + 1, np.inf)
        way = np.zeros(width + 1, dtype=np.int64)
        used = np.zeros(width + 1, dtype=np.bool_)
        while row_of[column]:
            used[column] = True
            free = ~used
            reduced = cost[row_of[column] - 1] - u[row_of[column]] - v[1:]
            better = free[1:] & (reduced < least[1:])
            least[1:][better], way[1:][better] = reduced[better], column
            following = int(np.argmin(np.where(free, least, np.inf)[1:])) + 1
            step = least[following]
            u[row_of[used]] += step
            v[used] -= step
            least[free] -= step
            column = following
        while column:
            previous = way[column]
            row_of[column] = row_of[previous]
            column = int(previous)
    taken = np.flatnonzero(row_of[1:])
    rows = row_of[1:][taken] - 1
    order = np.argsort(rows)
    return rows[order], taken[order]


def limbs_of(i: int, j: int, joint_of: NDArray[np.int64], edges: Edges, most_limbs: int) -> list[int] | None:
    """The limbs that a link between keypoints i and j stands for, if it stands for any.

    It does where both keypoints have a joint and the shortest way between the two along the skeleton has at most
    ``most_limbs`` limbs and passes no joint that has a keypoint of its own.

    Returns:
        Indices of edges, or None.
    """
    start, goal = int(joint_of[i]), int(joint_of[j])
    if start < 0 or goal < 0:
        return None
    taken = {int(joint) for joint in joint_of if joint >= 0} - {start, goal}
    queue: deque[tuple[int, list[int]]] = deque([(start, [])])
    reached = {start}
    while queue:
        joint, way = queue.popleft()
        if joint == goal:
            return way if way else None
        if len(way) == most_limbs or joint in taken:
            continue
        for index, (a, b) in enumerate(edges):
            for here, there in ((a, b), (b, a)):
                if here == joint and there not in reached:
                    reached.add(there)
                    queue.append((there, [*way, index]))
    return None
