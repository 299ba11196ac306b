"""The formats of poses: our own JSON, COCO's, DeepLabCut's and SLEAP's. A new one is a file, and a line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from pydantic_core import to_json

from service.estimates.results import Results
from service.http.problems import BadField

from .boxes import render_boxes
from .coco import render_coco
from .deeplabcut import render_deeplabcut, render_frames
from .json_lines import MEDIA_TYPES, render_document
from .sleap import render_sleap

CSV = "text/csv; charset=utf-8"


class Format(NamedTuple):
    """A format that results are rendered in, part by part: those of a long video need not fit into memory."""

    media_type: str
    render: Callable[[Results], Iterator[bytes]]


def _render_native(results: Results) -> Iterator[bytes]:
    version = results.version
    head = {"category": version.category, "version": version.name}
    yield to_json(head)[:-1] + b', "images": ['
    for number, pose in enumerate(results.poses()):
        # the links are most of the text, and encoded once
        yield b'%b%b, "links": %b}' % (b", " if number else b"", to_json(pose)[:-1], version.links_json)
    tail: dict[str, Any] = {"timing_ms": results.timing_ms}
    if results.errors is not None:
        tail["errors"] = results.errors
    if results.outliers is not None:
        tail["outliers"] = results.outliers
    yield b"], " + to_json(tail)[1:]


FORMATS = {
    "native": Format("application/json", _render_native),
    "coco": Format("application/json", render_coco),
    "csv": Format(CSV, render_deeplabcut),
    "frames": Format(CSV, render_frames),
    "slp": Format("application/x-hdf5", render_sleap),
    "boxes": Format(CSV, render_boxes),
    "jsonl": Format(MEDIA_TYPES[0], render_document),
}


def check_format(name: str, include: frozenset[str], landmarks: str | None) -> None:
    """Raise BadField if a format has no place for what to include, or is not installed."""
    if name == "slp" and find_spec("sleap_io") is None:
        raise BadField(
            "format", "the format slp needs sleap-io on the server: pip install 'pose-prior-learner[interop]'"
        )
    if name in ("frames", "boxes") and landmarks:
        raise BadField("landmarks", f"the format {name} has no place for landmarks; leave them out")
    if name not in ("native", "jsonl") and include:
        raise BadField(
            "include",
            f"include names {', '.join(sorted(include))}, for which the format {name} has no place; "
            "leave include out, or take the format native",
        )
