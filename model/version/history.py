"""Snapshots of the keypoint prior and the link weights along a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.network.pose_prior_learner import PosePriorLearner

FORMAT = 1  # of history.json


@dataclass(frozen=True)
class Snapshot:
    """The prior after a step.

    Attributes:
        step: number of steps done.
        keypoint_prior: (K, 2) in [-1, 1]; None for AutoLink.
        link_weights: (L,), over the pairs i < j in row-major order.
    """

    step: int
    keypoint_prior: Tensor | None
    link_weights: Tensor

    @classmethod
    @torch.no_grad()
    def from_model(cls, model: PosePriorLearner, step: int) -> Snapshot:
        """Copy the prior of a model to the CPU."""
        prior = model.keypoint_prior()
        points = None if prior is None else prior.detach().float().cpu().clone()
        return cls(step, points, model.link_weights.float().cpu())

    def to_json(self) -> dict[str, Any]:
        """Return the snapshot as JSON values."""
        points = None if self.keypoint_prior is None else self.keypoint_prior.tolist()
        return {"step": self.step, "keypoint_prior": points, "link_weights": self.link_weights.tolist()}


class History:
    """The snapshots of one run: its start, ``snapshots`` evenly spaced ones, and its end."""

    def __init__(self, steps: int, snapshots: int) -> None:
        self.due = frozenset(round(n * steps / (snapshots + 1)) for n in range(snapshots + 2))
        self.snapshots: list[Snapshot] = []

    def record(self, model: PosePriorLearner, step: int) -> None:
        """Add a snapshot if one is due after this step and not yet recorded."""
        if step in self.due and all(snapshot.step != step for snapshot in self.snapshots[-1:]):
            self.snapshots.append(Snapshot.from_model(model, step))

    def to_json(self, last: Snapshot) -> dict[str, Any]:
        """Return history.json: the recorded snapshots, closed by ``last``."""
        kept = [snapshot for snapshot in self.snapshots if snapshot.step != last.step]
        return {"format": FORMAT, "snapshots": [snapshot.to_json() for snapshot in [*kept, last]]}

    def to_tensors(self) -> dict[str, Tensor]:
        """Return step (H,), link_weights (H, L) and, unless AutoLink, keypoint_prior (H, K, 2) for a checkpoint."""
        if not self.snapshots:
            return {}
        tensors = {
            "step": torch.tensor([snapshot.step for snapshot in self.snapshots]),
            "link_weights": torch.stack([snapshot.link_weights for snapshot in self.snapshots]),
        }
        points = [snapshot.keypoint_prior for snapshot in self.snapshots if snapshot.keypoint_prior is not None]
        return {**tensors, "keypoint_prior": torch.stack(points)} if points else tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Replace the snapshots by those of :meth:`to_tensors`; checkpoints of the first release have none."""
        steps = tensors["step"].tolist() if tensors else []
        points = tensors.get("keypoint_prior")
        self.snapshots = [
            Snapshot(step, None if points is None else points[index], tensors["link_weights"][index])
            for index, step in enumerate(steps)
        ]
