"""All that came of a request's pictures as one document, the ones that failed named beside the poses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from .boxes import PictureBoxes
from .contract.videos import frame_name
from .formats import native, written
from .query import Query
from .results import Outcome, Results
from .versions import Version


def as_line(outcome: Outcome) -> bytes:
    """All that came of a picture, in one line of JSON."""
    return json.dumps(asdict(outcome), allow_nan=False).encode() + b"\n"


class Collected:
    """The outcomes of a request, as they come.

    Args:
        started: of the request, by ``time.perf_counter``.
    """

    def __init__(self, query: Query, version: Version, started: float) -> None:
        self._query = query
        self._version = version
        self._started = started
        self._outcomes: list[Outcome] = []
        self._sums = [0.0, 0.0, 0.0]

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self._outcomes.append(outcome)
        self._sums = [total + part for total, part in zip(self._sums, outcome.timing_ms, strict=True)]

    def add_lines(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Those that :func:`as_line` wrote down."""
        for line in lines:
            self.add(Outcome(line["index"], line["poses"], line["error"], tuple(line["timing_ms"])))

    def written(self) -> bytes:
        """The document, in the format asked for; our own also lists what failed, in ``errors``."""
        timing = dict(zip(("decode", "queue", "model"), self._sums, strict=True))
        timing["total"] = 1e3 * (time.perf_counter() - self._started)
        names, boxes = self._query.names, self._query.boxes
        if self._query.every:
            names, boxes = self._frames()
        results = Results(self._version, names, boxes, self._outcomes, timing)
        if self._query.format != "native":
            return written(results, self._query.format)
        errors = sorted((item.error for item in self._outcomes if item.error), key=lambda error: error["index"])
        return native(results)[:-1] + b', "errors": ' + json.dumps(errors).encode() + b"}"

    def _frames(self) -> tuple[tuple[str, ...], tuple[PictureBoxes, ...]]:
        """How the frames are called in a table."""
        numbers = {pose["index"]: pose["frame"] for outcome in self._outcomes for pose in outcome.poses}
        count = 1 + max((outcome.index for outcome in self._outcomes), default=-1)
        names = (frame_name(self._query.names[0] or "video", numbers[i]) if i in numbers else "" for i in range(count))
        return tuple(names), self._query.boxes * count
