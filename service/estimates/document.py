"""All that came of a request's pictures as one document, the ones that failed named beside the poses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.contract.media.videos import frame_name
from service.estimates.formats.registry import written
from service.versions.reader import Version

from .query import Query
from .results import Outcome, Results

# of a document that lacks poses
ERRORS_HEADER = "PPL-Errors"
_MOST_DETAIL = 300


def told_in_header(errors: Sequence[dict[str, Any]]) -> str:
    """How many pictures gave no pose, and the first of them, as JSON of one line and plain ASCII."""
    first = {name: errors[0][name] for name in ("index", "frame", "code", "detail") if name in errors[0]}
    first["detail"] = first["detail"][:_MOST_DETAIL]
    return json.dumps({"count": len(errors), "first": first})


def as_line(outcome: Outcome) -> bytes:
    """All that came of a picture, in one line of JSON."""
    return json.dumps(asdict(outcome), allow_nan=False).encode() + b"\n"


class WrittenOutcomes:
    """The outcomes that :func:`as_line` wrote into a file, in the order of pictures; read anew each time.

    Only where each lies is kept in memory: there may be ten thousand, each of many kilobytes.

    Args:
        path: of the file, or of none yet; a line that was cut short is left out.

    Attributes:
        failed: how many pictures gave none.
        end: where the last whole line ends.
    """

    def __init__(self, path: Path) -> None:
        self.failed = self.end = 0
        self._path = path
        self._places: dict[int, int] = {}
        try:
            with path.open("rb") as file:
                self._look_through(file)
        except FileNotFoundError:
            pass

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, index: object) -> bool:
        return index in self._places

    def __iter__(self) -> Iterator[Outcome]:
        if not self._places:
            return
        with self._path.open("rb") as file:
            for _, place in sorted(self._places.items()):
                file.seek(place)
                line = json.loads(file.readline())
                yield Outcome(line["index"], line["poses"], line["error"], tuple(line["timing_ms"]))

    def _look_through(self, file: Iterable[bytes]) -> None:
        place = 0
        for line in file:
            outcome = _whole(line)
            if outcome and outcome["index"] not in self._places:
                self._places[outcome["index"]] = place
                self.failed += outcome["error"] is not None
            place += len(line)
            if line.endswith(b"\n"):
                self.end = place


def _whole(line: bytes) -> dict[str, Any] | None:
    """What a line says; None of one that was cut short, by the end of a process or by what another wrote after it."""
    try:
        found: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found


def document(
    query: Query, version: Version, started: float, outcomes: Iterable[Outcome]
) -> tuple[bytes, list[dict[str, Any]]]:
    """The document of all outcomes, in the format asked for, and what failed, which a table has no place for.

    Args:
        started: of the request, by ``time.perf_counter``.
        outcomes: in the order of pictures; gone through more than once.
    """
    sums = [0.0, 0.0, 0.0]
    errors: list[dict[str, Any]] = []
    frames: dict[int, int] = {}  # which frame of the video each is
    for outcome in outcomes:
        sums = [total + part for total, part in zip(sums, outcome.timing_ms, strict=True)]
        if outcome.error:
            errors.append(outcome.error)
        for told in (*outcome.poses[:1], *([outcome.error] if outcome.error else [])):
            if query.every and "frame" in told:  # else it is why the file ended early
                frames[outcome.index] = told["frame"]
    timing = dict(zip(("decode", "queue", "model"), sums, strict=True))
    timing["total"] = 1e3 * (time.perf_counter() - started)
    names, boxes = query.names, query.boxes
    if query.every:
        video = query.names[0] or "video"
        count = max(frames, default=-1) + 1
        names = tuple(frame_name(video, frames[index]) if index in frames else "" for index in range(count))
        boxes = query.boxes * count
    return written(Results(version, names, boxes, outcomes, timing, errors), query.format), errors
