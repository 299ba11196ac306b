"""The formats of poses: our own JSON, COCO's and DeepLabCut's. A new one is a file, and a line in _RENDERERS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from service.estimates.pictures import encode_with_links
from service.estimates.results import Results
from service.http.problems import BadField

from .coco import render_coco
from .deeplabcut import render_deeplabcut

JSON = "application/json"


def render_native(results: Results) -> bytes:
    """Return the API's own JSON."""
    version = results.version
    head = {"category": version.category, "version": version.name}
    images = b", ".join(encode_with_links(pose, version) for pose in results.poses())
    tail: dict[str, Any] = {"timing_ms": {name: round(value, 2) for name, value in results.timing_ms.items()}}
    if results.errors is not None:
        tail["errors"] = results.errors
    return b'%b, "images": [%b], %b' % (to_json(head)[:-1], images, to_json(tail)[1:])


_RENDERERS: dict[str, tuple[str, Callable[[Results], bytes]]] = {
    "native": (JSON, render_native),
    "coco": (JSON, render_coco),
    "csv": ("text/csv; charset=utf-8", render_deeplabcut),
}
FORMATS = tuple(_RENDERERS)
MEDIA_TYPES = {name: media_type for name, (media_type, _) in _RENDERERS.items()}


def render(results: Results, name: str) -> bytes:
    """Return the results in a format."""
    return _RENDERERS[name][1](results)


def check_format(name: str, include: frozenset[str], landmarks: str | None = None) -> None:
    """Raise BadField if a format has no place for what to include."""
    if name == "native":
        return
    if landmarks:
        raise BadField("landmarks", f"the format {name} has no place for landmarks; take the format native")
    if include:
        raise BadField(
            "include",
            f"include names {', '.join(sorted(include))}, for which the format {name} has no place; "
            "leave include out, or take the format native",
        )
