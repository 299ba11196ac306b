"""Check a prior's JSON, whether exported, edited or written by hand; imports no torch, so the gateway uses it too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

from model.config import PPLConfig

from .skeleton import Pair, choose_links

KEYPOINTS = (4, 32)
"""The fewest and the most keypoints, as in the settings."""
REACH = 1.5
"""The largest coordinate of a keypoint; the square is [-1, 1]."""
MAX_WEIGHT = 1000.0
MAX_NAME_LENGTH = 64
LINK_WIDTHS = (1e-5, 0.1)
DEFAULT_LINK_WIDTH = 1e-3
SOURCES = ("memory", "predefined", "random", "mean_pose")
_TOLERANCE = 1e-6  # between two statements of a weight, relative to the weight, or to 1 if that is more


@dataclass(frozen=True)
class PriorValues:
    """The checked values of a :class:`model.version.prior.PosePrior`."""

    keypoint_prior: list[tuple[float, float]]
    link_weights: list[float]
    link_width: float
    keypoint_names: tuple[str, ...]
    keypoint_prior_source: str
    skeleton: tuple[Pair, ...]


def read_prior(mapping: Mapping[str, Any]) -> PriorValues:
    """Read and check a prior's JSON object.

    Required are ``keypoint_prior`` (K pairs of x and y) and ``links`` (objects of i, j, weight; missing pairs have no
    link) or ``connectivity_prior`` (a symmetric K x K matrix with a zero diagonal). If both are given they must agree
    in the listed links, and the matrix has the others: the API lists those of the skeleton alone. ``skeleton`` (pairs
    i, j), ``num_keypoints``, ``keypoint_names``, ``link_width`` and ``keypoint_prior_source`` are optional; other keys
    are ignored. The message of the ValueError says which part is wrong, what came and what was expected.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"the prior is {_show(mapping)}; expected a JSON object")
    points = _read_points(mapping.get("keypoint_prior"))
    count = len(points)
    stated = mapping.get("num_keypoints")
    if stated is not None and (isinstance(stated, bool) or stated != count):
        raise ValueError(f"num_keypoints is {_show(stated)}, but keypoint_prior has {count} points")
    width = mapping.get("link_width")
    width = DEFAULT_LINK_WIDTH if width is None else _read_number(width, "link_width", *LINK_WIDTHS)
    source = mapping.get("keypoint_prior_source")
    source = "memory" if source is None else source  # versions of the first release do not state it
    if source not in SOURCES:
        raise ValueError(f"keypoint_prior_source is {_show(source)}; expected one of {', '.join(SOURCES)}")
    names = read_names(mapping.get("keypoint_names"), count)
    weights = _read_weights(mapping, count)
    return PriorValues(points, weights, width, names, source, read_skeleton(mapping, points, weights))


def read_skeleton(
    mapping: Mapping[str, Any], points: list[tuple[float, float]], weights: list[float]
) -> tuple[Pair, ...]:
    """Read the links to draw from a prior's JSON; without them, choose them by the pose of the prior (K, 2).

    ``weights`` (L,) are over the pairs i < j in row-major order. Raises ValueError for anything but pairs i < j.
    """
    value, count = mapping.get("skeleton"), len(points)
    if value is None:
        return tuple(choose_links([math.dist(a, b) for a, b in combinations(points, 2)], weights, count))
    possible = set(combinations(range(count), 2))
    if not isinstance(value, list | tuple):
        raise ValueError(f"skeleton is {_show(value)}; expected a list of pairs i, j")
    pairs = [tuple(pair) if isinstance(pair, list | tuple) else pair for pair in value]
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple) or not all(type(end) is int for end in pair) or pair not in possible:
            raise ValueError(f"skeleton[{index}] is {_show(value[index])}; expected keypoints i < j below {count}")
    return tuple(pairs)


class GivenPrior(Protocol):
    """The parts of a prior, in numbers or in tensors, that :func:`check_given` reads."""

    @property
    def keypoint_names(self) -> tuple[str, ...]: ...

    @property
    def link_weights(self) -> Any: ...


def check_given(prior: GivenPrior | None, config: PPLConfig) -> None:
    """Check that a prior is given if and only if the settings start from one, and that it fits them.

    Raises:
        ValueError: the prior is missing, not used, or of another number of keypoints, or it has no links.
    """
    if prior is None:
        if config.needs_prior:
            raise ValueError(
                f"no prior is given; keypoint_prior={config.keypoint_prior} with "
                f"connectivity_prior={config.connectivity_prior} needs one"
            )
        return
    if not config.needs_prior:
        raise ValueError(
            "a prior is given, but keypoint_prior and connectivity_prior are not predefined; "
            "set one of them, or give no prior"
        )
    count = len(prior.keypoint_names)
    if count != config.num_keypoints:
        raise ValueError(
            f"the prior has {count} keypoints; the setting num_keypoints is {config.num_keypoints}: set it to {count}, "
            "or leave it out"
        )
    if config.connectivity_prior == "predefined" and not any(weight > 0 for weight in prior.link_weights):
        raise ValueError("the prior has no link with a weight above 0; connectivity_prior=predefined needs some")


def default_names(count: int) -> tuple[str, ...]:
    """Return numbered keypoint names."""
    return tuple(f"keypoint_{i}" for i in range(count))


def read_names(value: Any, count: int) -> tuple[str, ...]:
    """Check that there are K different printable names of 1 to 64 characters; None means numbered names."""
    if value is None:
        return default_names(count)
    if not isinstance(value, list | tuple) or len(value) != count:
        came = f"has {len(value)} names" if isinstance(value, list | tuple) else f"is {_show(value)}"
        raise ValueError(f"keypoint_names {came}; expected {count}, one for each point of keypoint_prior")
    for index, name in enumerate(value):
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise ValueError(f"keypoint_names[{index}] is {_show(name)}; expected 1 to {MAX_NAME_LENGTH} characters")
        if name in value[:index]:
            raise ValueError(f"keypoint_names[{index}] is {_show(name)}, which another keypoint has too")
    return tuple(value)


def _read_points(value: Any) -> list[tuple[float, float]]:
    fewest, most = KEYPOINTS
    if not isinstance(value, list | tuple):
        raise ValueError(f"keypoint_prior is {_show(value)}; expected {fewest} to {most} pairs of x and y")
    if not fewest <= len(value) <= most:
        raise ValueError(f"keypoint_prior has {len(value)} points; expected {fewest} to {most}")
    points = []
    for index, point in enumerate(value):
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise ValueError(f"keypoint_prior[{index}] is {_show(point)}; expected a pair of x and y")
        x, y = (_read_number(value, f"keypoint_prior[{index}]", -REACH, REACH) for value in point)
        points.append((x, y))
    return points


def _read_weights(mapping: Mapping[str, Any], count: int) -> list[float]:
    links, matrix = mapping.get("links"), mapping.get("connectivity_prior")
    if links is None and matrix is None:
        raise ValueError("the prior has neither links nor connectivity_prior; expected one of them")
    listed = _read_matrix(matrix, count) if links is None else _read_links(links, count)
    filled = listed if links is None or matrix is None else _read_matrix(matrix, count)
    for (i, j), a in listed.items():
        b = filled.get((i, j), 0.0)
        if abs(a - b) > _TOLERANCE * max(1.0, a):
            raise ValueError(
                f"links and connectivity_prior disagree: between {i} and {j} the weight is {a:g} in one and {b:g} in "
                "the other; change both, or leave one of them out"
            )
    return [{**filled, **listed}.get(pair, 0.0) for pair in combinations(range(count), 2)]


def _read_links(value: Any, count: int) -> dict[Pair, float]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"links is {_show(value)}; expected a list of objects with i, j and weight")
    weights: dict[Pair, float] = {}
    for index, link in enumerate(value):
        if not isinstance(link, Mapping) or not {"i", "j", "weight"} <= set(link):
            raise ValueError(f"links[{index}] is {_show(link)}; expected an object with i, j and weight")
        for end in "ij":
            if type(link[end]) is not int or not 0 <= link[end] < count:
                expected = f"expected a keypoint from 0 to {count - 1}"
                raise ValueError(f"links[{index}].{end} is {_show(link[end])}; {expected}")
        pair = (min(link["i"], link["j"]), max(link["i"], link["j"]))
        if pair[0] == pair[1]:
            raise ValueError(f"links[{index}] links keypoint {pair[0]} with itself; expected two different ones")
        if pair in weights:
            raise ValueError(f"links[{index}] links {pair[0]} and {pair[1]}, which another link does already")
        weights[pair] = _read_number(link["weight"], f"links[{index}].weight", 0.0, MAX_WEIGHT)
    return weights


def _read_matrix(value: Any, count: int) -> dict[Pair, float]:
    rows = value if isinstance(value, list | tuple) and len(value) == count else [None]
    if any(not isinstance(row, list | tuple) or len(row) != count for row in rows):
        raise ValueError(f"connectivity_prior is {_show(value)}; expected {count} rows of {count} weights")
    cells = {
        (i, j): _read_number(cell, f"connectivity_prior[{i}][{j}]", 0.0, MAX_WEIGHT)
        for i, row in enumerate(rows)
        for j, cell in enumerate(row)
    }
    for (i, j), weight in cells.items():
        if i == j and weight != 0:
            raise ValueError(f"connectivity_prior[{i}][{i}] is {weight:g}; expected 0 on the diagonal")
        if i < j and abs(weight - cells[j, i]) > _TOLERANCE * max(1.0, weight):
            raise ValueError(
                f"connectivity_prior is not symmetric: [{i}][{j}] is {weight:g}, [{j}][{i}] is {cells[j, i]:g}"
            )
    return {(i, j): weight for (i, j), weight in cells.items() if i < j}


def _read_number(value: Any, name: str, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:  # NaN is outside too
        raise ValueError(f"{name} is {_show(value)}; expected a number from {low:g} to {high:g}")
    return float(value)


def _show(value: Any) -> str:
    """Describe a value for an error message, in at most 60 characters."""
    if value is None:
        return "missing"
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of many digits"  # Python refuses to print thousands of digits
    if isinstance(value, list | tuple | Mapping | set):
        return f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
