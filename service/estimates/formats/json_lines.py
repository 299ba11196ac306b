"""JSON lines: a line for each pose or failed picture in order of completion, and a summary at the end."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.estimates.results import STAGES, Outcome
from service.http.problems import BadField
from service.versions.reader import Version

MEDIA_TYPES = ("application/jsonl", "application/x-ndjson")


def check_format_of_lines(name: str) -> None:
    """Raise BadField for a format that is one document."""
    if name != "native":
        raise BadField(
            "format", f"format is {name}, which is one document, and Accept names JSON lines; leave one of them out"
        )


class LinesResponse(StreamingResponse):
    """A stream of JSON lines that releases what it holds when it ends, even if it was never read."""

    def __init__(self, lines: AsyncIterator[bytes], media_type: str, held: AsyncExitStack) -> None:
        # proxies that buffer would delay all lines until the last
        super().__init__(lines, media_type=media_type, headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store"})
        self._lines = lines
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines."""
        async with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._lines.aclose()  # type: ignore[attr-defined]  # a generator


async def render_lines(outcomes: AsyncIterator[Outcome], version: Version, started: float) -> AsyncIterator[bytes]:
    """Yield the lines of a request's outcomes.

    Args:
        started: `time.perf_counter` at the start of the request.
    """
    pictures = poses = failed = 0
    timing_ms = dict.fromkeys(STAGES, 0.0)
    async for outcome in outcomes:
        pictures += 1
        poses += len(outcome.poses)
        failed += outcome.error is not None
        for stage, elapsed_ms in zip(STAGES, outcome.timing_ms, strict=True):
            timing_ms[stage] += elapsed_ms
        if outcome.error:
            yield _line({"index": outcome.index, "error": outcome.error})
        else:
            yield b"".join(map(_line, outcome.poses))
    timing_ms["total"] = 1e3 * (time.perf_counter() - started)
    summary = {
        "category": version.category,
        "version": version.name,
        "pictures": pictures,
        "poses": poses,
        "failed": failed,
        "links": version.links,
        "timing_ms": {name: round(value, 2) for name, value in timing_ms.items()},
    }
    yield _line({"summary": summary})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
