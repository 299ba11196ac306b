"""The formats of poses: our own JSON, COCO's, DeepLabCut's and SLEAP's. A new one is a file, and a line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from pydantic_core import to_json

from service.estimates.results import Results
from service.http.problems import BadField

from .boxes import render_boxes
from .coco import render_coco
from .deeplabcut import render_deeplabcut, render_frames
from .sleap import render_sleap

CSV = "text/csv; charset=utf-8"


class Format(NamedTuple):
    """A format that results are rendered in."""

    media_type: str
    render: Callable[[Results], bytes]


def _render_native(results: Results) -> bytes:
    version = results.version
    head = {"category": version.category, "version": version.name}
    # the links are most of the text, and encoded once
    images = b", ".join(b'%b, "links": %b}' % (to_json(pose)[:-1], version.links_json) for pose in results.poses())
    tail: dict[str, Any] = {"timing_ms": results.timing_ms}
    if results.errors is not None:
        tail["errors"] = results.errors
    return b'%b, "images": [%b], %b' % (to_json(head)[:-1], images, to_json(tail)[1:])


FORMATS = {
    "native": Format("application/json", _render_native),
    "coco": Format("application/json", render_coco),
    "csv": Format(CSV, render_deeplabcut),
    "frames": Format(CSV, render_frames),
    "slp": Format("application/x-hdf5", render_sleap),
    "boxes": Format(CSV, render_boxes),
}


def check_format(name: str, include: frozenset[str], landmarks: str | None) -> None:
    """Raise BadField if a format has no place for what to include, or is not installed."""
    if name == "slp" and find_spec("sleap_io") is None:
        raise BadField(
            "format", "the format slp needs sleap-io on the server: pip install 'pose-prior-learner[interop]'"
        )
    if name in ("frames", "boxes") and landmarks:
        raise BadField("landmarks", f"the format {name} has no place for landmarks; leave them out")
    if name != "native" and include:
        raise BadField(
            "include",
            f"include names {', '.join(sorted(include))}, for which the format {name} has no place; "
            "leave include out, or take the format native",
        )
