"""JSON lines: a line a pose in order of completion, one for each picture that failed, and a summary at the end.

FastAPI's own JSON lines come from an operation that only ever yields; this one may also answer with a document or
a problem, so it answers with a response of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.estimates.results import Outcome
from service.http.negotiation import accepted_media_type
from service.http.problems import BadField
from service.versions.reader import Version

MEDIA_TYPES = ("application/jsonl", "application/x-ndjson")


def wanted_lines(accept: str) -> str | None:
    """The media type of JSON lines that a request's Accept names; None where it names none."""
    return accepted_media_type(accept, MEDIA_TYPES)


def check_lines(chosen: str) -> None:
    """Raises BadField for a format that can't be told line by line."""
    if chosen != "native":
        raise BadField(
            "format",
            f"format is {chosen}, which is one document, and Accept asks for JSON lines; leave one of them out",
        )


class LinesResponse(StreamingResponse):
    """A stream of JSON lines that lets go of what it holds when it ends, also where nobody reads it."""

    def __init__(self, lines: AsyncIterator[bytes], media_type: str, held: AsyncExitStack) -> None:
        # proxies that collect answers would turn the stream into one late document
        super().__init__(lines, media_type=media_type, headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store"})
        self._lines = lines
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._lines.aclose()  # type: ignore[attr-defined]  # it is a generator


async def lines(outcomes: AsyncIterator[Outcome], version: Version, started: float) -> AsyncIterator[bytes]:
    """The lines of a request's outcomes.

    Args:
        started: of the request, by ``time.perf_counter``.
    """
    pictures = poses = failed = 0
    sums = [0.0, 0.0, 0.0]
    async for outcome in outcomes:
        pictures += 1
        poses += len(outcome.poses)
        failed += outcome.error is not None
        sums = [total + part for total, part in zip(sums, outcome.timing_ms, strict=True)]
        yield lines_of(outcome)
    timing = dict(zip(("decode", "queue", "model"), sums, strict=True))
    timing["total"] = 1e3 * (time.perf_counter() - started)
    summary = {
        "category": version.category,
        "version": version.name,
        "pictures": pictures,
        "poses": poses,
        "failed": failed,
        "links": version.links,
        "timing_ms": {name: round(value, 2) for name, value in timing.items()},
    }
    yield _line({"summary": summary})


def lines_of(outcome: Outcome) -> bytes:
    """The lines of one picture: its poses, or its error."""
    if outcome.error:
        return _line({"index": outcome.index, "error": outcome.error})
    return b"".join(map(_line, outcome.poses))


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
