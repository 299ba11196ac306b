"""What a category looks like: the pose prior, and the prototypical poses of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import PPLConfig
from model.network.links import connectivity_matrix, link_indices
from model.network.pose_prior_learner import PosePriorLearner
from model.network.refine import NoMemoryError

from .prior_values import read_prior


@dataclass(frozen=True)
class PosePrior:
    """The keypoint prior and the connectivity prior of a category.

    Attributes:
        keypoint_prior: (K, 2) in units of [-1, 1].
        link_weights: (L,), over the pairs i < j in row-major order; positive, or 0 where a given prior has no link.
        link_width: sigma squared with which the links were drawn, in units of [-1, 1] squared.
        keypoint_names: K names.
        keypoint_prior_source: "memory" (distilled), "predefined", "random", or "mean_pose": the mean of the
            training pictures' poses, which stands in for a prior with the method "autolink".
    """

    keypoint_prior: Tensor
    link_weights: Tensor
    link_width: float
    keypoint_names: tuple[str, ...]
    keypoint_prior_source: str = "memory"

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: PosePriorLearner,
        keypoint_names: tuple[str, ...] | None = None,
        *,
        mean_pose: Tensor | None = None,
    ) -> PosePrior:
        """The prior that a model has learned so far.

        Args:
            model: of any method.
            keypoint_names: K names; numbered where not given.
            mean_pose: (K, 2), needed of a model that has no keypoint prior (AutoLink), ignored for others.

        Raises:
            ValueError: another number of names than keypoints, or no mean pose where one is needed.
        """
        names = keypoint_names or tuple(f"keypoint_{i}" for i in range(model.config.num_keypoints))
        if len(names) != model.config.num_keypoints:
            raise ValueError(f"{len(names)} keypoint names given for {model.config.num_keypoints} keypoints")
        learned, source = model.keypoint_prior(), model.config.keypoint_prior
        if learned is None:
            learned, source = mean_pose, "mean_pose"
        if learned is None:
            raise ValueError(f"a model of the method {model.config.method} has no keypoint prior; expected a mean_pose")
        prior, weights = learned.detach().float().cpu().clone(), model.link_weights.float().cpu()
        return cls(prior, weights, model.config.link_width, names, source)

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> PosePrior:
        """The inverse of :meth:`to_json`; reads priors that were edited or written by hand too.

        The rules are those of :func:`model.version.prior_values.read_prior`. Keys it does not know, such as those that
        ``GET /priors/{category}`` adds, are ignored.

        Raises:
            ValueError: says which part is wrong, what came and what was expected.
        """
        values = read_prior(mapping)
        return cls(
            torch.tensor(values.keypoint_prior),
            torch.tensor(values.link_weights),
            values.link_width,
            values.keypoint_names,
            values.keypoint_prior_source,
        )

    def check(self, config: PPLConfig) -> None:
        """Whether a training with these settings can start from this prior.

        Raises:
            ValueError: it has another number of keypoints, or no link where the settings take the links from it.
        """
        count = len(self.keypoint_names)
        if count != config.num_keypoints:
            raise ValueError(f"the prior has {count} keypoints; the setting num_keypoints is {config.num_keypoints}")
        if config.connectivity_prior == "predefined" and not (self.link_weights > 0).any():
            raise ValueError("the prior has no link with a weight above 0; connectivity_prior=predefined needs some")

    def to_json(self) -> dict[str, Any]:
        """The prior as plain values; links in falling order of weight."""
        i, j = link_indices(len(self.keypoint_names))
        links = sorted(zip(i.tolist(), j.tolist(), self.link_weights.tolist(), strict=True), key=lambda link: -link[2])
        return {
            "num_keypoints": len(self.keypoint_names),
            "keypoint_names": list(self.keypoint_names),
            "keypoint_prior": self.keypoint_prior.tolist(),
            "connectivity_prior": connectivity_matrix(self.link_weights).tolist(),
            "links": [{"i": a, "j": b, "weight": weight} for a, b, weight in links],
            "link_width": self.link_width,
            "keypoint_prior_source": self.keypoint_prior_source,
        }


def check_given(prior: PosePrior | None, config: PPLConfig) -> None:
    """Whether a training gets a prior if and only if its settings start from one, and one that fits.

    Raises:
        ValueError: says what is missing or too much, or as :meth:`PosePrior.check`.
    """
    if prior is not None and not config.needs_prior:
        raise ValueError(
            "a prior is given, but keypoint_prior and connectivity_prior are not predefined; "
            "set one of them, or give no prior"
        )
    if prior is None and config.needs_prior:
        raise ValueError(
            f"no prior is given; keypoint_prior={config.keypoint_prior} with "
            f"connectivity_prior={config.connectivity_prior} needs one"
        )
    if prior is not None:
        prior.check(config)


@dataclass(frozen=True)
class Prototype:
    """A prototypical pose: the medoid of a cluster of the training pictures' codes.

    Attributes:
        keypoints: (K, 2) in [-1, 1], decoded from the codes.
        codes: (M,).
        count: pictures in its cluster.
    """

    keypoints: Tensor
    codes: Tensor
    count: int


def hamming_distances(a: Tensor, b: Tensor) -> Tensor:
    """In how many banks two pictures' codes differ: (N, M) and (P, M) to (N, P)."""
    distances = torch.zeros(len(a), len(b), dtype=torch.int16)
    for bank in range(a.shape[1]):  # one at a time: memory for one matrix, whatever M and V are
        distances += a[:, bank, None] != b[None, :, bank]
    return distances


def cluster_codes(codes: Tensor, num_clusters: int, rounds: int = 20, most: int = 4096) -> tuple[Tensor, Tensor]:
    """K-medoids over Hamming distance: exact combinations hardly ever repeat, so like ones are grouped.

    Starts from the overall medoid and adds the farthest picture each time; deterministic.

    Args:
        codes: (N, M) of all training pictures.
        num_clusters: at most this many clusters; fewer where fewer combinations differ.
        rounds: of assignment and update, at most.
        most: medoids are sought among this many pictures, evenly spaced; all pictures are counted.

    Returns:
        Indices of the medoids into ``codes`` (C,), and the members of each (C,); both by falling members.
    """
    if codes.shape[0] == 0:
        raise ValueError("no codes to cluster; expected at least one picture")
    chosen = torch.linspace(0, codes.shape[0] - 1, min(most, codes.shape[0])).round().long()
    sample = codes[chosen]
    distances = hamming_distances(sample, sample)
    medoids = [int(distances.sum(0).argmin())]
    nearest = distances[medoids[0]]
    while len(medoids) < num_clusters and nearest.max() > 0:
        medoids.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distances[medoids[-1]])
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
def prototypes(model: PosePriorLearner, codes: Tensor, num_clusters: int = 12) -> list[Prototype]:
    """The prototypical poses of a model, from the codes (N, M) of its training pictures.

    Raises:
        NoMemoryError: the model has no memory.
    """
    memory = model.memory
    if memory is None:
        raise NoMemoryError(f"a model of the method {model.config.method} has no memory, and no prototypes")
    medoids, counts = cluster_codes(codes.cpu(), num_clusters)
    poses = memory.decode(memory.lookup(codes[medoids].to(memory.codebook.device))).float().cpu()
    return [
        Prototype(pose, code, int(count)) for pose, code, count in zip(poses, codes[medoids].cpu(), counts, strict=True)
    ]
