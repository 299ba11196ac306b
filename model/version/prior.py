"""The pose prior of a category, its snapshots along a run, and the prototypes in its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from model.network.links import connectivity_matrix, link_indices
from model.network.links import link_lengths as lengths_of
from model.network.pose_prior_learner import LEAST_LINK_WEIGHT, PosePriorLearner
from model.network.refine import NoMemoryError

from .prior_values import default_names, read_prior
from .skeleton import Pair, choose_links

FORMAT = 1  # of history.json


@dataclass(frozen=True)
class PosePrior:
    """The keypoint prior and the connectivity prior of a category.

    Attributes:
        keypoint_prior: (K, 2) in [-1, 1].
        link_weights: (L,), over the pairs i < j in row-major order; positive, or 0 where a given prior has no link.
        link_width: sigma squared that links were drawn with, in units of [-1, 1] squared.
        keypoint_prior_source: "memory" (distilled), "predefined", "random", or, for AutoLink, "mean_pose", the mean
            over the training pictures.
        skeleton: the links (i, j), i < j, that one would draw; all others have a part in the link map alone.
    """

    keypoint_prior: Tensor
    link_weights: Tensor
    link_width: float
    keypoint_names: tuple[str, ...]
    keypoint_prior_source: str = "memory"
    skeleton: tuple[Pair, ...] = ()

    @classmethod
    @torch.no_grad()
    def from_model(
        cls,
        model: PosePriorLearner,
        keypoint_names: tuple[str, ...] | None = None,
        *,
        mean_pose: Tensor | None = None,
        link_lengths: Tensor | None = None,
    ) -> PosePrior:
        """Copy the prior that a model has learned so far to the CPU.

        The K names are numbers unless given. AutoLink, which has no keypoint prior, needs a ``mean_pose`` (K, 2). The
        skeleton is chosen by ``link_lengths`` (L,), those in the keypoint prior unless given; links that are
        predefined and frozen are all drawn. Raises ValueError if that is missing, or the number of names is not K.
        """
        config = model.config
        names = keypoint_names or default_names(config.num_keypoints)
        if len(names) != config.num_keypoints:
            raise ValueError(f"{len(names)} keypoint names given for {config.num_keypoints} keypoints")
        learned, source = model.keypoint_prior(), config.keypoint_prior
        if learned is None:
            learned, source = mean_pose, "mean_pose"
        if learned is None:
            raise ValueError(f"a model of the method {config.method} has no keypoint prior; expected a mean_pose")
        prior, weights = learned.detach().float().cpu().clone(), model.link_weights.float().cpu()
        lengths = lengths_of(prior) if link_lengths is None else link_lengths.cpu()
        skeleton = choose_links(lengths.tolist(), weights.tolist(), config.num_keypoints)
        if config.connectivity_prior == "predefined" and not config.connectivity_prior_trainable:
            drawn = (weights > 2 * LEAST_LINK_WEIGHT).tolist()
            skeleton = [pair for pair, strong in zip(combinations(range(len(prior)), 2), drawn, strict=True) if strong]
        return cls(prior, weights, config.link_width, names, source, tuple(skeleton))

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> PosePrior:
        """Read what :meth:`to_json` returns, edited or written by hand, as :func:`.prior_values.read_prior` does."""
        values = vars(read_prior(mapping))
        tensors = {name: torch.tensor(values[name]) for name in ("keypoint_prior", "link_weights")}
        return cls(**values | tensors)

    def to_json(self) -> dict[str, Any]:
        """Return the prior as JSON values, its links in falling order of weight."""
        i, j = link_indices(len(self.keypoint_names))
        links = sorted(zip(i.tolist(), j.tolist(), self.link_weights.tolist(), strict=True), key=lambda link: -link[2])
        return {
            "num_keypoints": len(self.keypoint_names),
            "keypoint_names": list(self.keypoint_names),
            "keypoint_prior": self.keypoint_prior.tolist(),
            "connectivity_prior": connectivity_matrix(self.link_weights).tolist(),
            "links": [{"i": a, "j": b, "weight": weight} for a, b, weight in links],
            "skeleton": [list(pair) for pair in self.skeleton],
            "link_width": self.link_width,
            "keypoint_prior_source": self.keypoint_prior_source,
        }


def hamming_distances(a: Tensor, b: Tensor) -> Tensor:
    """Count the banks in which two pictures' codes differ: (N, M) and (P, M) to (N, P)."""
    distances = torch.zeros(len(a), len(b), dtype=torch.int16)
    for bank in range(a.shape[1]):  # one at a time, to need memory for one (N, P) matrix only
        distances += a[:, bank, None] != b[None, :, bank]
    return distances


def cluster_codes(codes: Tensor, num_clusters: int, rounds: int = 20, max_sample: int = 4096) -> tuple[Tensor, Tensor]:
    """Find clusters of codes by k-medoids over the Hamming distance; deterministic.

    Exact combinations of codes hardly ever repeat, so similar ones are grouped.

    Args:
        codes: (N, M) of all training pictures, at least one.
        num_clusters: the most clusters; there are fewer if fewer combinations differ.
        rounds: the most rounds of assignment and update.
        max_sample: medoids are chosen among this many pictures, evenly spaced; all pictures are counted.

    Returns:
        Indices of the medoids into ``codes`` (C,), and the size of each cluster (C,), largest first.
    """
    if codes.shape[0] == 0:
        raise ValueError("no codes to cluster; expected at least one picture")
    chosen = torch.linspace(0, codes.shape[0] - 1, min(max_sample, codes.shape[0])).round().long()
    sample = codes[chosen]
    distances = hamming_distances(sample, sample)
    # start from the overall medoid, and add the picture farthest from all medoids each time
    medoids = [int(distances.sum(0).argmin())]
    nearest = distances[medoids[0]]
    while len(medoids) < num_clusters and nearest.max() > 0:
        medoids.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distances[medoids[-1]])
    # assign each picture to its nearest medoid, and move each medoid to the middle of its cluster, until none moves
    centres = torch.tensor(medoids)
    for _ in range(rounds):
        member_of = distances[centres].argmin(0)
        moved = centres.clone()
        for cluster in range(len(medoids)):
            members = (member_of == cluster).nonzero().squeeze(1)
            if members.numel():
                moved[cluster] = members[distances[members][:, members].sum(0).argmin()]
        if torch.equal(moved, centres):
            break
        centres = moved
    counts = torch.bincount(hamming_distances(codes, sample[centres]).argmin(1), minlength=centres.numel())
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    return chosen[centres[order]], counts[order]


@torch.no_grad()
def prototypes(model: PosePriorLearner, codes: Tensor, num_clusters: int = 12) -> list[dict[str, Any]]:
    """Return a model's prototypical poses: the medoids of the clusters of its training pictures' codes (N, M).

    Each has, as JSON values, "keypoints" (K, 2) in [-1, 1], decoded from its "codes" (M,), and the "count" of
    pictures in its cluster. Raises NoMemoryError if the model has no memory.
    """
    memory = model.memory
    if memory is None:
        raise NoMemoryError(f"a model of the method {model.config.method} has no memory, and no prototypes")
    medoids, counts = cluster_codes(codes.cpu(), num_clusters)
    poses = memory.decode(memory.lookup(codes[medoids].to(memory.codebook.device))).float().cpu()
    columns = zip(poses.tolist(), codes[medoids].tolist(), counts.tolist(), strict=True)
    return [{"keypoints": keypoints, "codes": chosen, "count": count} for keypoints, chosen, count in columns]


@dataclass(frozen=True)
class Snapshot:
    """The prior after a step: keypoints (K, 2) in [-1, 1], None for AutoLink, and link weights (L,) as PosePrior's."""

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
        points, weights = tensors.get("keypoint_prior", [None] * len(steps)), tensors.get("link_weights", ())
        self.snapshots = [Snapshot(*row) for row in zip(steps, points, weights, strict=True)]
