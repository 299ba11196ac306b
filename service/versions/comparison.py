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
    keypoints: list[dict[str, Any]] = []
    for i, j in pairs:
        shift = np.subtract(newer["keypoint_prior"][j], older["keypoint_prior"][i], dtype=np.float64)
        dx, dy, moved = (round(float(value), _DIGITS) for value in (*shift, np.hypot(*shift)))
        name = _name(newer, j) or _name(older, i)
        keypoints.append({"from_id": i, "to_id": j, "name": name, "dx": dx, "dy": dy, "moved": moved})
    links = _compare_links(older, newer, dict(pairs), strong)
    lost, gained = (
        [link for link in links if (link[one] or 0) >= strong > (link[other] or 0)]
        for one, other in (("from_share", "to_share"), ("to_share", "from_share"))
    )
    return {
        "category": newer["category"],
        "from_version": older["version"],
        "to_version": newer["version"],
        "matched_by": matched_by,
        "why": why,
        "keypoints": keypoints,
        "mean_moved": round(sum(point["moved"] for point in keypoints) / len(keypoints), _DIGITS),
        "lost_keypoints": sorted(set(range(len(older["keypoint_prior"]))) - {i for i, _ in pairs}),
        "gained_keypoints": sorted(set(range(len(newer["keypoint_prior"]))) - {j for _, j in pairs}),
        "strong": strong,
        "lost_links": lost,
        "gained_links": gained,
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
    matched, reached = set(matches), set(matches.values())
    pairs: list[tuple[Ends | None, Ends | None]] = [
        *(((i, j), _order_ends(matches[i], matches[j])) for i, j in combinations(sorted(matches), 2)),
        *((ends, None) for ends, (_, share) in before.items() if share >= strong and not matched.issuperset(ends)),
        *((None, ends) for ends, (_, share) in after.items() if share >= strong and not reached.issuperset(ends)),
    ]
    links = []
    for old, new in pairs:
        link: dict[str, Any] = {"from_ends": old, "to_ends": new}
        link["from_weight"], link["from_share"] = before.get(old, (0.0, 0.0)) if old else (None, None)
        link["to_weight"], link["to_share"] = after.get(new, (0.0, 0.0)) if new else (None, None)
        links.append(link)
    return sorted(links, key=lambda link: -abs((link["to_share"] or 0) - (link["from_share"] or 0)))


def _weights_and_shares(prior: Mapping[str, Any]) -> dict[Ends, tuple[float, float]]:
    """Return each link's weight, and its share of the strongest weight."""
    strongest = max((link["weight"] for link in prior["links"]), default=0.0) or 1.0
    weights = {_order_ends(link["i"], link["j"]): float(link["weight"]) for link in prior["links"]}
    return {ends: (round(weight, _DIGITS), round(weight / strongest, _DIGITS)) for ends, weight in weights.items()}


def _order_ends(i: int, j: int) -> Ends:
    return min(i, j), max(i, j)


def _name(prior: Mapping[str, Any], index: int) -> str | None:
    names = prior.get("keypoint_names") or []
    return None if has_default_names(names) else str(names[index])
