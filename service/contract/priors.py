"""A prior that a job starts from, checked before it is trusted: pure Python, so that the gateway can.

The document is what ``GET /priors/{category}`` gives and what a version's prior.json holds; of it are read
``keypoint_prior``, ``links`` or ``connectivity_prior``, and where they are there ``num_keypoints``,
``keypoint_names`` and ``link_width``. Everything else in it is ignored. The model reads a prior by the same rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from model.config import PPLConfig, settings

from .errors import BadPrior

MAX_PRIOR_BYTES = 2**20

MAX_COORDINATE = 1.5  # a little outside of the square, which is [-1, 1]
MAX_WEIGHT = 1000.0
_MAX_NAME = 100
# links and matrix are the same numbers written twice, perhaps by hand
_AGREE = 1e-4
_LONGEST_SHOWN = 80


def read_prior(data: bytes) -> dict[str, Any]:
    """A prior as it came, checked and brought into one form.

    Raises:
        BadPrior: too long, no JSON, or as :func:`check_prior`.
    """
    if len(data) > MAX_PRIOR_BYTES:
        raise BadPrior(f"the prior has {len(data)} bytes; {MAX_PRIOR_BYTES} are allowed")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadPrior(f"the prior is not JSON: {str(error)[:200]}") from error
    return check_prior(document)


def check_prior(document: Any) -> dict[str, Any]:
    """A prior's document, checked and brought into one form.

    Returns:
        "num_keypoints" (K), "keypoint_names" (K texts or None), "keypoint_prior" (K of [x, y] in units of [-1, 1]),
        "connectivity_prior" (K rows of K), "links" (all pairs i < j, the strongest first), and "link_width"
        where it was given.

    Raises:
        BadPrior: something is missing or not what it must be; the detail says what came and what was expected.
    """
    if not isinstance(document, Mapping):
        raise BadPrior(f"the prior is {_shown(document)}; it must be a JSON object, as GET /priors/CATEGORY gives it")
    points = _points(document.get("keypoint_prior"))
    count = len(points)
    if document.get("num_keypoints") not in (None, count):
        came = _shown(document["num_keypoints"])
        raise BadPrior(f"the prior's num_keypoints is {came}, but its keypoint_prior has {count} points")
    weights = _weights(document, count)
    links = [{"i": i, "j": j, "weight": weight} for (i, j), weight in weights.items()]
    checked: dict[str, Any] = {
        "num_keypoints": count,
        "keypoint_names": _names(document.get("keypoint_names"), count),
        "keypoint_prior": points,
        "connectivity_prior": [
            [0.0 if i == j else weights[min(i, j), max(i, j)] for j in range(count)] for i in range(count)
        ],
        "links": sorted(links, key=lambda link: -link["weight"]),
    }
    if document.get("link_width") is not None:
        width = _number(document["link_width"], "link_width")
        allowed = settings()["link_width"][1]
        if not (allowed.low or 0.0) <= width <= (allowed.high or math.inf):
            raise BadPrior(f"the prior's link_width is {width:g}; it must be {allowed}")
        checked["link_width"] = width
    return checked


def check_use(prior: Mapping[str, Any] | None, config: PPLConfig) -> None:
    """Whether a job's settings and the prior that came with it suit each other.

    Raises:
        BadPrior: the settings want a prior and none came, the other way round, or K differs.
    """
    if prior is None and config.needs_prior:
        wanted = " and ".join(
            f"{name}=predefined"
            for name in ("keypoint_prior", "connectivity_prior")
            if getattr(config, name) == "predefined"
        )
        raise BadPrior(
            f"{wanted} needs a prior to start from and none came; send one in prior, or name a category that has "
            "one in prior_from"
        )
    if prior is None:
        return
    if not config.needs_prior:
        raise BadPrior(
            "a prior came, but the settings use none; set keypoint_prior=predefined, connectivity_prior=predefined "
            "or both, or send no prior"
        )
    if prior["num_keypoints"] != config.num_keypoints:
        raise BadPrior(
            f"the prior has {prior['num_keypoints']} keypoints and num_keypoints is {config.num_keypoints}; "
            "both must be the same, or leave num_keypoints out"
        )


def _points(came: Any) -> list[list[float]]:
    low, high = (int(bound or 0) for bound in (settings()["num_keypoints"][1].low, settings()["num_keypoints"][1].high))
    expected = f"it must be a list of {low} to {high} points [x, y], each from -{MAX_COORDINATE} to {MAX_COORDINATE}"
    if not isinstance(came, list):
        raise BadPrior(f"the prior's keypoint_prior is {_shown(came)}; {expected}")
    if not low <= len(came) <= high:
        raise BadPrior(f"the prior's keypoint_prior has {len(came)} points; {expected}")
    points = []
    for index, point in enumerate(came):
        if not isinstance(point, list) or len(point) != 2:
            raise BadPrior(f"keypoint_prior[{index}] is {_shown(point)}; {expected}")
        x, y = (_number(value, f"keypoint_prior[{index}]") for value in point)
        if max(abs(x), abs(y)) > MAX_COORDINATE:
            raise BadPrior(f"keypoint_prior[{index}] is {_shown(point)}; {expected}")
        points.append([x, y])
    return points


def _names(came: Any, count: int) -> list[str] | None:
    if came is None:
        return None
    expected = f"it must be a list of {count} different texts of 1 to {_MAX_NAME} characters, or be left out"
    if not isinstance(came, list) or len(came) != count:
        raise BadPrior(f"the prior's keypoint_names is {_shown(came)}; {expected}")
    for name in came:
        if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME:
            raise BadPrior(f"the prior's keypoint_names holds {_shown(name)}; {expected}")
    if len(set(came)) != count:
        raise BadPrior(f"the prior's keypoint_names holds one name twice; {expected}")
    return list(came)


def _weights(document: Mapping[str, Any], count: int) -> dict[tuple[int, int], float]:
    links, matrix = document.get("links"), document.get("connectivity_prior")
    if links is None and matrix is None:
        raise BadPrior("the prior has neither links nor connectivity_prior; one of them must say how strong links are")
    listed = _from_links(links, count) if links is not None else None
    tabled = _from_matrix(matrix, count) if matrix is not None else None
    if listed is None or tabled is None:
        found = listed or tabled
        assert found is not None  # K is at least 4, so there are pairs
        return found
    for (i, j), weight in listed.items():
        if abs(weight - tabled[i, j]) > _AGREE * max(1.0, weight):
            raise BadPrior(
                f"the prior's links say {weight:g} for the link {i}-{j} and its connectivity_prior {tabled[i, j]:g}; "
                "they must agree, or leave one of them out"
            )
    return listed


def _from_links(came: Any, count: int) -> dict[tuple[int, int], float]:
    expected = f'a link is {{"i": i, "j": j, "weight": w}} with 0 <= i < j < {count} and w from 0 to {MAX_WEIGHT:g}'
    if not isinstance(came, list):
        raise BadPrior(f"the prior's links is {_shown(came)}; it must be a list, and {expected}")
    found: dict[tuple[int, int], float] = {}
    for index, link in enumerate(came):
        if not isinstance(link, Mapping) or not {"i", "j", "weight"} <= link.keys():
            raise BadPrior(f"links[{index}] is {_shown(link)}; {expected}")
        i, j = link["i"], link["j"]
        if type(i) is not int or type(j) is not int or not 0 <= i < j < count:
            raise BadPrior(f"links[{index}] is {_shown(link)}; {expected}")
        if (i, j) in found:
            raise BadPrior(f"the prior's links have {i}-{j} twice; each pair may come once")
        found[i, j] = _weight(link["weight"], f"links[{index}]", expected)
    return {(i, j): found.get((i, j), 0.0) for i in range(count) for j in range(i + 1, count)}


def _from_matrix(came: Any, count: int) -> dict[tuple[int, int], float]:
    expected = f"it must be a symmetric {count} x {count} matrix of weights from 0 to {MAX_WEIGHT:g}, 0 on its diagonal"
    if not isinstance(came, list) or len(came) != count:
        raise BadPrior(f"the prior's connectivity_prior is {_shown(came)}; {expected}")
    rows = []
    for i, row in enumerate(came):
        if not isinstance(row, list) or len(row) != count:
            raise BadPrior(f"connectivity_prior[{i}] is {_shown(row)}; {expected}")
        rows.append([_weight(value, f"connectivity_prior[{i}][{j}]", expected) for j, value in enumerate(row)])
    for i in range(count):
        if rows[i][i] != 0:
            raise BadPrior(f"connectivity_prior[{i}][{i}] is {rows[i][i]:g}; {expected}")
        for j in range(i + 1, count):
            if abs(rows[i][j] - rows[j][i]) > _AGREE * max(1.0, rows[i][j]):
                raise BadPrior(
                    f"connectivity_prior[{i}][{j}] is {rows[i][j]:g} and [{j}][{i}] is {rows[j][i]:g}; {expected}"
                )
    return {(i, j): rows[i][j] for i in range(count) for j in range(i + 1, count)}


def _weight(came: Any, where: str, expected: str) -> float:
    weight = _number(came, where)
    if not 0 <= weight <= MAX_WEIGHT:
        raise BadPrior(f"the weight of {where} is {weight:g}; {expected}")
    return weight


def _number(came: Any, where: str) -> float:
    if type(came) not in (int, float) or not abs(came) < 1e18:  # nor NaN, nor infinite, nor endless digits
        raise BadPrior(f"{where} holds {_shown(came)}; a finite number was expected")
    return float(came)


def _shown(value: Any) -> str:
    """What came, short: a prior may be long."""
    if value is None:
        return "missing"
    if isinstance(value, list) and len(value) > 4:
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of many digits"
    return repr(value)[:_LONGEST_SHOWN]
