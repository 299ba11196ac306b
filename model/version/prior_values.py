"""Reading a prior that was exported, edited by hand or written by hand: JSON values in, checked numbers out.

Pure Python; :meth:`model.version.prior.PosePrior.from_json` makes tensors of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYPOINTS = (4, 32)
"""The fewest and the most keypoints of a prior, as in the settings."""
REACH = 1.5
"""How far out a keypoint may lie, the square being [-1, 1]."""
HEAVIEST = 1000.0
"""The largest weight of a link."""
LONGEST_NAME = 64
LINK_WIDTHS = (1e-5, 0.1)
DEFAULT_LINK_WIDTH = 1e-3
SOURCES = ("memory", "predefined", "random", "mean_pose")
_AGREE = 1e-6  # between the two ways of giving a weight, relative to 1 or to the weight

Pair = tuple[int, int]


@dataclass(frozen=True)
class PriorValues:
    """A prior's numbers, checked.

    Attributes:
        keypoint_prior: K points (x, y) in units of [-1, 1].
        link_weights: L weights, at least 0, over the pairs i < j in row-major order.
        link_width: sigma squared, in units of [-1, 1] squared.
        keypoint_names: K different names.
        keypoint_prior_source: one of ``SOURCES``.
    """

    keypoint_prior: list[tuple[float, float]]
    link_weights: list[float]
    link_width: float
    keypoint_names: tuple[str, ...]
    keypoint_prior_source: str


def read_prior(mapping: Mapping[str, Any]) -> PriorValues:
    """Check a prior's JSON object.

    Needed are ``keypoint_prior`` (K pairs of x and y) and one of ``links`` (objects of i, j, weight; a pair that
    is not listed has no link) and ``connectivity_prior`` (a symmetric K x K matrix with a zero diagonal); where
    both are given they must agree. ``num_keypoints``, ``keypoint_names``, ``link_width`` and
    ``keypoint_prior_source`` may be left out or null. Other keys are ignored.

    Raises:
        ValueError: says which part is wrong, what came and what was expected.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"the prior is {_short(mapping)}; expected a JSON object")
    points = _points(mapping.get("keypoint_prior"))
    count = len(points)
    told = mapping.get("num_keypoints")
    if told is not None and (isinstance(told, bool) or told != count):
        raise ValueError(f"num_keypoints is {_short(told)}, but keypoint_prior has {count} points")
    width = mapping.get("link_width")
    width = DEFAULT_LINK_WIDTH if width is None else _number(width, "link_width", *LINK_WIDTHS)
    source = mapping.get("keypoint_prior_source")
    source = "memory" if source is None else source  # versions of the first release do not say
    if source not in SOURCES:
        raise ValueError(f"keypoint_prior_source is {_short(source)}; expected one of {', '.join(SOURCES)}")
    return PriorValues(
        points, _weights(mapping, count), width, read_names(mapping.get("keypoint_names"), count), source
    )


def read_names(value: Any, count: int) -> tuple[str, ...]:
    """Check the names of K keypoints; numbered ones where the value is None.

    Raises:
        ValueError: as :func:`read_prior`.
    """
    if value is None:
        return tuple(f"keypoint_{i}" for i in range(count))
    if not isinstance(value, list | tuple) or len(value) != count:
        came = f"has {len(value)} names" if isinstance(value, list | tuple) else f"is {_short(value)}"
        raise ValueError(f"keypoint_names {came}; expected {count}, one for each point of keypoint_prior")
    seen: set[str] = set()
    for index, name in enumerate(value):
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"keypoint_names[{index}] is {_short(name)}; expected 1 to {LONGEST_NAME} characters")
        if name in seen:
            raise ValueError(f"keypoint_names[{index}] is {_short(name)}, which another keypoint has too")
        seen.add(name)
    return tuple(value)


def _points(value: Any) -> list[tuple[float, float]]:
    fewest, most = KEYPOINTS
    if not isinstance(value, list | tuple):
        raise ValueError(f"keypoint_prior is {_short(value)}; expected {fewest} to {most} pairs of x and y")
    if not fewest <= len(value) <= most:
        raise ValueError(f"keypoint_prior has {len(value)} points; expected {fewest} to {most}")
    points = []
    for index, point in enumerate(value):
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise ValueError(f"keypoint_prior[{index}] is {_short(point)}; expected a pair of x and y")
        x, y = (_number(value, f"keypoint_prior[{index}]", -REACH, REACH) for value in point)
        points.append((x, y))
    return points


def _weights(mapping: Mapping[str, Any], count: int) -> list[float]:
    links, matrix = mapping.get("links"), mapping.get("connectivity_prior")
    if links is None and matrix is None:
        raise ValueError("the prior has neither links nor connectivity_prior; expected one of them")
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    listed = None if links is None else _listed(links, count)
    filled = None if matrix is None else _matrix(matrix, count)
    if listed is not None and filled is not None:
        for pair in pairs:
            a, b = listed.get(pair, 0.0), filled[pair]
            if abs(a - b) > _AGREE * max(1.0, a):
                raise ValueError(
                    f"links and connectivity_prior disagree: between {pair[0]} and {pair[1]} the weight is {a:g} "
                    f"in one and {b:g} in the other; change both, or leave one of them out"
                )
    weights = listed if listed is not None else filled
    assert weights is not None
    return [weights.get(pair, 0.0) for pair in pairs]


def _listed(value: Any, count: int) -> dict[Pair, float]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"links is {_short(value)}; expected a list of objects with i, j and weight")
    weights: dict[Pair, float] = {}
    for index, link in enumerate(value):
        if not isinstance(link, Mapping) or not {"i", "j", "weight"} <= set(link):
            raise ValueError(f"links[{index}] is {_short(link)}; expected an object with i, j and weight")
        i, j = (_keypoint(link[end], f"links[{index}].{end}", count) for end in "ij")
        if i == j:
            raise ValueError(f"links[{index}] links keypoint {i} with itself; expected two different ones")
        pair = (min(i, j), max(i, j))
        if pair in weights:
            raise ValueError(f"links[{index}] links {pair[0]} and {pair[1]}, which another link does already")
        weights[pair] = _number(link["weight"], f"links[{index}].weight", 0.0, HEAVIEST)
    return weights


def _matrix(value: Any, count: int) -> dict[Pair, float]:
    square = isinstance(value, list | tuple) and len(value) == count
    if not square or any(not isinstance(row, list | tuple) or len(row) != count for row in value):
        raise ValueError(f"connectivity_prior is {_short(value)}; expected {count} rows of {count} weights")
    rows = [
        [_number(cell, f"connectivity_prior[{i}][{j}]", 0.0, HEAVIEST) for j, cell in enumerate(row)]
        for i, row in enumerate(value)
    ]
    for i in range(count):
        if rows[i][i] != 0:
            raise ValueError(f"connectivity_prior[{i}][{i}] is {rows[i][i]:g}; expected 0 on the diagonal")
        for j in range(i + 1, count):
            if abs(rows[i][j] - rows[j][i]) > _AGREE * max(1.0, rows[i][j]):
                raise ValueError(
                    f"connectivity_prior is not symmetric: [{i}][{j}] is {rows[i][j]:g}, [{j}][{i}] is {rows[j][i]:g}"
                )
    return {(i, j): rows[i][j] for i in range(count) for j in range(i + 1, count)}


def _keypoint(value: Any, name: str, count: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise ValueError(f"{name} is {_short(value)}; expected a keypoint from 0 to {count - 1}")
    return value


def _number(value: Any, name: str, low: float, high: float) -> float:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value if isinstance(value, float) else 0) or not low <= value <= high:
        raise ValueError(f"{name} is {_short(value)}; expected a number from {low:g} to {high:g}")
    return float(value)


def _short(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of many digits"  # which Python may refuse to write
    if isinstance(value, list | tuple | Mapping | set):
        return f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
