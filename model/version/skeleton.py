"""The links of a prior that one would draw: a tree of its short and strong links. Needs no torch.

Not in the paper, whose link map is a fan of many links: a picture is explained as well by a chain of short links as by
the long one beside it, so training gives weight to both. Of each loop the tree leaves out the link that is longest for
its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

Pair = tuple[int, int]

LEAST_SHARE = 0.02
"""Links below this share of the strongest weight are never drawn: a keypoint that has no other stays alone."""


def choose_links(lengths: Sequence[float], weights: Sequence[float], num_keypoints: int) -> list[Pair]:
    """Choose the links to draw: the minimum spanning tree by length / weight (Kruskal), the strongest link first.

    Args:
        lengths: (L,), mean length of each link over many poses, in any unit; over the pairs i < j in row-major order.
        weights: (L,), at least 0.
        num_keypoints: K.

    Returns:
        At most K - 1 pairs (i, j), i < j.
    """
    pairs = list(combinations(range(num_keypoints), 2))
    least = LEAST_SHARE * max(weights)
    kept = [link for link, weight in enumerate(weights) if weight > 0 and weight >= least]
    group = list(range(num_keypoints))  # the tree that each keypoint belongs to, by one of its members
    chosen: list[int] = []
    for link in sorted(kept, key=lambda link: lengths[link] / weights[link]):
        one, other = (group[end] for end in pairs[link])
        if one != other:
            group = [one if member == other else member for member in group]
            chosen.append(link)
    return [pairs[link] for link in sorted(chosen, key=lambda link: -weights[link])]
