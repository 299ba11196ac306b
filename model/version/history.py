"""How a prior came to be: snapshots of the keypoint prior and of the link weights along a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.network.pose_prior_learner import PosePriorLearner

FORMAT = 1  # of history.json


@dataclass(frozen=True)
class Snapshot:
    """The prior after some steps.

    Attributes:
        step: steps done; 0 is before the first.
        keypoint_prior: (K, 2) in units of [-1, 1]; None for AutoLink.
        link_weights: (L,), over the pairs i < j in row-major order.
    """

    step: int
    keypoint_prior: Tensor | None
    link_weights: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: PosePriorLearner, step: int) -> Snapshot:
        """The prior of a model as it is, on the CPU."""
        prior = model.keypoint_prior()
        points = None if prior is None else prior.detach().float().cpu().clone()
        return cls(step, points, model.link_weights.float().cpu())

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        points = None if self.keypoint_prior is None else self.keypoint_prior.tolist()
        return {"step": self.step, "keypoint_prior": points, "link_weights": self.link_weights.tolist()}


class History:
    """The snapshots of one run: the first state, some evenly spaced, and the last.

    Args:
        steps: of the whole run.
        snapshots: how many between the first and the last; where steps are fewer, one a step.
    """

    def __init__(self, steps: int, snapshots: int) -> None:
        self.due = frozenset(round(n * steps / (snapshots + 1)) for n in range(snapshots + 2))
        self.snapshots: list[Snapshot] = []

    def watch(self, model: PosePriorLearner, step: int) -> None:
        """Keep the prior after a step if it is due, and not kept already."""
        if step in self.due and all(kept.step != step for kept in self.snapshots[-1:]):
            self.snapshots.append(Snapshot.of(model, step))

    def to_json(self, now: Snapshot) -> dict[str, Any]:
        """history.json: what was kept, closed by the prior as it is now."""
        kept = [snapshot for snapshot in self.snapshots if snapshot.step != now.step]
        return {"format": FORMAT, "snapshots": [snapshot.to_json() for snapshot in [*kept, now]]}

    def to_tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: step (H,), link_weights (H, L) and, but for AutoLink, keypoint_prior (H, K, 2)."""
        if not self.snapshots:
            return {}
        tensors = {
            "step": torch.tensor([snapshot.step for snapshot in self.snapshots]),
            "link_weights": torch.stack([snapshot.link_weights for snapshot in self.snapshots]),
        }
        points = [snapshot.keypoint_prior for snapshot in self.snapshots if snapshot.keypoint_prior is not None]
        return {**tensors, "keypoint_prior": torch.stack(points)} if points else tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the place of what was kept; the inverse of :meth:`to_tensors`.

        A checkpoint of a release that kept no history has none: it then begins where the run goes on.
        """
        steps = tensors["step"].tolist() if tensors else []
        points = tensors.get("keypoint_prior")
        self.snapshots = [
            Snapshot(step, None if points is None else points[index], tensors["link_weights"][index])
            for index, step in enumerate(steps)
        ]
