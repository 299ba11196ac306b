"""Two priors side by side: which keypoint is which, how far each moved, which links came and went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.scoring.matching import assign
from service.contract.errors import BadRequest
from service.contract.versions.additions import numbered

Match = Literal["auto", "number", "position"]

STRONG = 0.25
"""A link counts from this share of its prior's strongest one on; that of `python -m model.evaluate skeleton` too."""
_DIGITS = 6

_WHY = {
    "number": "the same number is the same keypoint",
    "same": "both are the same version",
    "continued": "the one was trained on from the other, and its keypoints are the same",
    "name": "the keypoints of both were given the same names",
    "position": "the keypoints were learned apart: they are matched one to one by their places in the typical poses, "
    "so that the sum of the distances is the least",
}


def compare(older: Mapping[str, Any], newer: Mapping[str, Any], match: Match, strong: float) -> dict[str, Any]:
    """The difference of two priors.

    Args:
        older, newer: as GET /priors/{category} gives them.
        match: which keypoints are the same: those of one number; those that lie near each other, of a one-to-one
            matching of least summed distance; or "auto": by number within one version and where both come from one,
            by name where users gave both the same names, else by position.
        strong: share of a prior's strongest link from which on a link counts as one.

    Raises:
        BadRequest: keypoints of one number are asked for, and the priors have different numbers of them.
    """
    pairs, told, why = _pairs(older, newer, match)
    places = [np.array(prior["keypoint_prior"], dtype=np.float64) for prior in (older, newer)]
    keypoints: list[dict[str, Any]] = []
    for i, j in pairs:
        way = places[1][j] - places[0][i]
        keypoints.append(
            {
                "from_id": i,
                "to_id": j,
                "name": _name(newer, j) or _name(older, i),
                "dx": round(float(way[0]), _DIGITS),
                "dy": round(float(way[1]), _DIGITS),
                "moved": round(float(np.hypot(*way)), _DIGITS),
            }
        )
    links = _links(older, newer, dict(pairs), strong)
    counted = [(_counts(link["from_share"], strong), _counts(link["to_share"], strong)) for link in links]
    return {
        "category": newer["category"],
        "from_version": older["version"],
        "to_version": newer["version"],
        "matched_by": told,
        "why": why,
        "keypoints": keypoints,
        "mean_moved": round(sum(point["moved"] for point in keypoints) / len(keypoints), _DIGITS),
        "lost_keypoints": sorted(set(range(len(places[0]))) - {i for i, _ in pairs}),
        "gained_keypoints": sorted(set(range(len(places[1]))) - {j for _, j in pairs}),
        "strong": strong,
        "lost_links": [link for link, (then, now) in zip(links, counted, strict=True) if then and not now],
        "gained_links": [link for link, (then, now) in zip(links, counted, strict=True) if now and not then],
        "links": [link for link in links if link["from_ends"] and link["to_ends"]],
    }


def _pairs(older: Mapping[str, Any], newer: Mapping[str, Any], match: Match) -> tuple[list[tuple[int, int]], str, str]:
    counts = [len(prior["keypoint_prior"]) for prior in (older, newer)]
    same = older["version"] == newer["version"]
    continued = bool(set(_lineage(older)) & set(_lineage(newer)))
    if match == "number" or (match == "auto" and (same or continued)):
        if counts[0] != counts[1]:
            raise BadRequest(
                f"match is number, and the versions have {counts[0]} and {counts[1]} keypoints; match them by position"
            )
        why = "same" if same else "continued" if continued else "number"
        return [(index, index) for index in range(counts[0])], "number", _WHY[why]
    names = [prior.get("keypoint_names") or [] for prior in (older, newer)]
    if match == "auto" and not any(map(numbered, names)) and set(names[0]) == set(names[1]):
        return [(index, names[1].index(name)) for index, name in enumerate(names[0])], "name", _WHY["name"]
    rows, columns = assign(_distances(older["keypoint_prior"], newer["keypoint_prior"]))
    return list(zip(rows.tolist(), columns.tolist(), strict=True)), "position", _WHY["position"]


def _lineage(prior: Mapping[str, Any]) -> list[str]:
    """The versions that one came from, and itself."""
    before = (prior.get("training") or {}).get("continued_from") or {}
    return [*before.get("lineage", []), f"{prior['category']}@{prior['version']}"]


def _distances(older: Sequence[Any], newer: Sequence[Any]) -> NDArray[np.float64]:
    a, b = np.array(older, dtype=np.float64), np.array(newer, dtype=np.float64)
    distances: NDArray[np.float64] = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return distances


def _links(
    older: Mapping[str, Any], newer: Mapping[str, Any], to: dict[int, int], strong: float
) -> list[dict[str, Any]]:
    """Every pair of matched keypoints, and the strong links of those without a match; what changed most comes first."""
    before, after = _shares(older), _shares(newer)
    found = []
    for i, j in combinations(sorted(to), 2):
        found.append(_link((i, j), _ordered(to[i], to[j]), before, after))
    back = {j: i for i, j in to.items()}
    for ends, (_, share) in before.items():
        if share >= strong and not (ends[0] in to and ends[1] in to):
            found.append(_link(ends, None, before, after))
    for ends, (_, share) in after.items():
        if share >= strong and not (ends[0] in back and ends[1] in back):
            found.append(_link(None, ends, before, after))
    return sorted(found, key=lambda link: -abs((link["to_share"] or 0) - (link["from_share"] or 0)))


def _link(
    older: tuple[int, int] | None,
    newer: tuple[int, int] | None,
    before: Mapping[tuple[int, int], tuple[float, float]],
    after: Mapping[tuple[int, int], tuple[float, float]],
) -> dict[str, Any]:
    old = before.get(older, (0.0, 0.0)) if older else (None, None)
    new = after.get(newer, (0.0, 0.0)) if newer else (None, None)
    return {
        "from_ends": older,
        "to_ends": newer,
        "from_weight": old[0],
        "to_weight": new[0],
        "from_share": old[1],
        "to_share": new[1],
    }


def _shares(prior: Mapping[str, Any]) -> dict[tuple[int, int], tuple[float, float]]:
    """Each link's weight, and what share of the strongest it is."""
    strongest = max((link["weight"] for link in prior["links"]), default=0.0) or 1.0
    return {
        _ordered(link["i"], link["j"]): (
            round(float(link["weight"]), _DIGITS),
            round(float(link["weight"]) / strongest, _DIGITS),
        )
        for link in prior["links"]
    }


def _ordered(i: int, j: int) -> tuple[int, int]:
    return min(i, j), max(i, j)


def _counts(share: float | None, strong: float) -> bool:
    return share is not None and share >= strong


def _name(prior: Mapping[str, Any], index: int) -> str | None:
    names = prior.get("keypoint_names") or []
    return None if numbered(names) else str(names[index])
