"""The forms in which poses are told: our own JSON, COCO's, and DeepLabCut's table."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from service.estimates.pictures import with_links
from service.estimates.results import Results
from service.http.problems import BadField

from .coco import coco
from .deeplabcut import table

FORMATS = ("native", "coco", "csv")
MEDIA_TYPES = {"native": "application/json", "coco": "application/json", "csv": "text/csv; charset=utf-8"}


def native(results: Results) -> bytes:
    """The poses as the API's own JSON."""
    version = results.version
    head = {"category": version.category, "version": version.name}
    images = b", ".join(with_links(pose, version) for pose in results.poses())
    tail: dict[str, Any] = {"timing_ms": {name: round(value, 2) for name, value in results.timing_ms.items()}}
    if results.errors is not None:
        tail["errors"] = results.errors
    return b'%b, "images": [%b], %b' % (to_json(head)[:-1], images, to_json(tail)[1:])


_WRITERS: dict[str, Callable[[Results], bytes]] = {
    "native": native,
    "coco": lambda results: json.dumps(coco(results)).encode(),
    "csv": lambda results: table(results).encode(),
}


def written(results: Results, chosen: str) -> bytes:
    """The results in one of FORMATS."""
    return _WRITERS[chosen](results)


def check_format(chosen: str, include: frozenset[str], landmarks: str | None = None) -> None:
    """Raises BadField where a format has no place for what is to be included."""
    if chosen != "native" and landmarks:
        raise BadField(
            "landmarks", f"landmarks are asked for, for which the format {chosen} has no place; take the format native"
        )
    if chosen != "native" and include:
        raise BadField(
            "include",
            f"include names {', '.join(sorted(include))}, for which the format {chosen} has no place; "
            "leave include out, or take the format native",
        )
