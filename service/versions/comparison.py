"""Compare two priors: match their keypoints, measure how far each moved, and list gained and lost links."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

import numpy as np

from model.scoring.matching import assign
from service.contract.errors import BadRequest
from service.contract.versions.additions import has_default_names

Match = Literal["auto", "number", "position"]
Ends = tuple[int, int]

STRONG = 0.25
"""The least share of its prior's strongest link that makes a link count, as in python -m model.evaluate skeleton."""
_DIGITS = 6

_WHY = {
    "number": "keypoints of the same number are the same",
    "same": "both are the same version",
    "continued": "one version continues the training of the other, and its keypoints are the same",
    "name": "the keypoints of both have the same names",
    "position": "the keypoints were learned independently: they are matched one to one by their positions in the "
    "typical poses, with the least sum of distances",
}


def compare(older: Mapping[str, Any], newer: Mapping[str, Any], match: Match, strong: float) -> dict[str, Any]:
    """Compare two priors.

    Args:
        older, newer: as GET /priors/{category} returns them.
        match: "number", "position" (one to one, with the least sum of distances), or "auto": by number within a
            version and where one version continues the other, by name if users gave both the same names, else by
            position.
        strong: the least share of its prior's strongest link that makes a link count.

    Raises:
        BadRequest: keypoints are matched by number, and the priors have different numbers of them.
    """
    pairs, matched_by, why = _match_keypoints(older, newer, match)
    poses = [np.array(prior["keypoint_prior"], dtype=np.float64) for prior in (older, newer)]
    keypoints: list[dict[str, Any]] = []
    for i, j in pairs:
        shift = poses[1][j] - poses[0][i]
        keypoints.append(
            {
                "from_id": i,
                "to_id": j,
                "name": _name(newer, j) or _name(older, i),
                "dx": round(float(shift[0]), _DIGITS),
                "dy": round(float(shift[1]), _DIGITS),
                "moved": round(float(np.hypot(*shift)), _DIGITS),
            }
        )
    links = _compare_links(older, newer, dict(pairs), strong)
    counts = [((link["from_share"] or 0) >= strong, (link["to_share"] or 0) >= strong) for link in links]
    return {
        "category": newer["category"],
        "from_version": older["version"],
        "to_version": newer["version"],
        "matched_by": matched_by,
        "why": why,
        "keypoints": keypoints,
        "mean_moved": round(sum(point["moved"] for point in keypoints) / len(keypoints), _DIGITS),
        "lost_keypoints": sorted(set(range(len(poses[0]))) - {i for i, _ in pairs}),
        "gained_keypoints": sorted(set(range(len(poses[1]))) - {j for _, j in pairs}),
        "strong": strong,
        "lost_links": [link for link, (before, after) in zip(links, counts, strict=True) if before and not after],
        "gained_links": [link for link, (before, after) in zip(links, counts, strict=True) if after and not before],
        "links": [link for link in links if link["from_ends"] and link["to_ends"]],
    }


def _match_keypoints(older: Mapping[str, Any], newer: Mapping[str, Any], match: Match) -> tuple[list[Ends], str, str]:
    """Return pairs of an older and a newer keypoint, how they were matched, and why so."""
    numbers = [len(prior["keypoint_prior"]) for prior in (older, newer)]
    is_same = older["version"] == newer["version"]
    is_continued = bool(set(_lineage(older)) & set(_lineage(newer)))
    if match == "number" or (match == "auto" and (is_same or is_continued)):
        if numbers[0] != numbers[1]:
            raise BadRequest(
                f"match is number, and the versions have {numbers[0]} and {numbers[1]} keypoints; use match=position"
            )
        why = "same" if is_same else "continued" if is_continued else "number"
        return [(index, index) for index in range(numbers[0])], "number", _WHY[why]
    names = [prior.get("keypoint_names") or [] for prior in (older, newer)]
    if match == "auto" and not any(map(has_default_names, names)) and set(names[0]) == set(names[1]):
        return [(index, names[1].index(name)) for index, name in enumerate(names[0])], "name", _WHY["name"]
    a, b = (np.array(prior["keypoint_prior"], dtype=np.float64) for prior in (older, newer))
    rows, columns = assign(np.linalg.norm(a[:, None] - b[None], axis=-1))
    return list(zip(rows.tolist(), columns.tolist(), strict=True)), "position", _WHY["position"]


def _lineage(prior: Mapping[str, Any]) -> list[str]:
    """Return the versions that this one continues, and itself."""
    base = (prior.get("training") or {}).get("continued_from") or {}
    return [*base.get("lineage", []), f"{prior['category']}@{prior['version']}"]


def _compare_links(
    older: Mapping[str, Any], newer: Mapping[str, Any], matches: dict[int, int], strong: float
) -> list[dict[str, Any]]:
    """Compare the links of all matched keypoints, and the strong links of the others; the largest change first."""
    before, after = _weights_and_shares(older), _weights_and_shares(newer)
    pairs: list[tuple[Ends | None, Ends | None]] = [
        ((i, j), _order_ends(matches[i], matches[j])) for i, j in combinations(sorted(matches), 2)
    ]
    for ends, (_, share) in before.items():
        if share >= strong and not matches.keys() >= set(ends):
            pairs.append((ends, None))
    for ends, (_, share) in after.items():
        if share >= strong and not set(matches.values()) >= set(ends):
            pairs.append((None, ends))
    links = []
    for old_ends, new_ends in pairs:
        old = before.get(old_ends, (0.0, 0.0)) if old_ends else (None, None)
        new = after.get(new_ends, (0.0, 0.0)) if new_ends else (None, None)
        links.append(
            {
                "from_ends": old_ends,
                "to_ends": new_ends,
                "from_weight": old[0],
                "to_weight": new[0],
                "from_share": old[1],
                "to_share": new[1],
            }
        )
    return sorted(links, key=lambda link: -abs((link["to_share"] or 0) - (link["from_share"] or 0)))


def _weights_and_shares(prior: Mapping[str, Any]) -> dict[Ends, tuple[float, float]]:
    """Return each link's weight, and its share of the strongest weight."""
    strongest = max((link["weight"] for link in prior["links"]), default=0.0) or 1.0
    return {
        _order_ends(link["i"], link["j"]): (
            round(float(link["weight"]), _DIGITS),
            round(float(link["weight"]) / strongest, _DIGITS),
        )
        for link in prior["links"]
    }


def _order_ends(i: int, j: int) -> Ends:
    return min(i, j), max(i, j)


def _name(prior: Mapping[str, Any], index: int) -> str | None:
    names = prior.get("keypoint_names") or []
    return None if has_default_names(names) else str(names[index])
