"""What the pictures of a batch ask for, and the poses in the worker's reply."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.errors import ContractMismatch, ModelFailed, PPLError
from service.contract.messages import BatchReply

log = logging.getLogger(__name__)


class Group(NamedTuple):
    """The properties that pictures of one batch share."""

    category: str
    version: str
    side: int
    refine_steps: int
    link_map: bool
    codes: bool = False
    reconstructions: bool = False


class Pose(NamedTuple):
    """A pose in the coordinates of its square."""

    keypoints: NDArray[np.float32]  # (K, 2)
    scores: NDArray[np.float32]  # (K,)
    trajectory: NDArray[np.float32]  # (T + 1, K, 2)
    link_map: NDArray[np.uint8] | None  # (S, S)
    surprise: np.float32 | None
    codes: NDArray[np.uint16] | None  # (M,)
    presence: np.float32 | None
    reconstructions: NDArray[np.uint8] | None = None  # (T + 1, s, s, 3)


def check_reply(reply: BatchReply, group: Group, count: int) -> PPLError | None:
    """Return what is wrong with the arrays of a reply to a batch of some pictures."""
    needed = [reply.keypoints, reply.scores, reply.trajectory, *([reply.link_map] if group.link_map else [])]
    optional = (reply.surprises, reply.codes, reply.presences, reply.reconstructions)
    given = [array for array in (*needed, *optional) if array is not None]
    if any(array is None for array in needed) or any(len(array) != count for array in given):
        log.error("malformed reply: batch=%s", reply.batch_id)
        return ModelFailed("the worker's reply does not fit the batch")
    if not all(np.isfinite(array).all() for array in given):
        return ModelFailed("the model's poses are not finite; this version of the category is broken, train it again")
    for name in ("codes", "reconstructions"):
        if getattr(group, name) and getattr(reply, name) is None:
            return ContractMismatch(
                f"the worker is of an older release and returns no {name}; "
                f"leave {name} out of include, or run gateway and workers of the same release"
            )
    return None


def read_pose(reply: BatchReply, row: int) -> Pose:
    """Return the pose of one picture of a checked reply."""
    arrays = (reply.keypoints, reply.scores, reply.trajectory, reply.link_map)
    more = (reply.surprises, reply.codes, reply.presences, reply.reconstructions)
    return Pose._make(None if array is None else array[row] for array in (*arrays, *more))
