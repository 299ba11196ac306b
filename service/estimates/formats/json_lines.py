"""JSON lines: a line for each pose or failed picture in order of completion, and a summary at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.estimates.results import STAGES, Outcome, describe_timing
from service.versions.reader import Version

MEDIA_TYPES = ("application/jsonl", "application/x-ndjson")


class LinesResponse(StreamingResponse):
    """A stream of JSON lines that releases what it holds when it ends, even if it was never read."""

    def __init__(self, lines: AsyncGenerator[bytes], media_type: str, held: AsyncExitStack) -> None:
        # proxies that buffer would delay all lines until the last
        super().__init__(lines, media_type=media_type, headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store"})
        held.push_async_callback(lines.aclose)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines."""
        async with self._held:
            await super().__call__(scope, receive, send)


async def render_lines(outcomes: AsyncGenerator[Outcome], version: Version, started: float) -> AsyncGenerator[bytes]:
    """Yield the lines of a request's outcomes.

    Args:
        started: `time.perf_counter` at the start of the request.
    """
    pictures = poses = failed = 0
    stages_ms = np.zeros(len(STAGES))
    async for outcome in outcomes:
        pictures += 1
        poses += len(outcome.poses)
        failed += outcome.error is not None
        stages_ms += outcome.timing_ms
        if outcome.error:
            yield _line({"index": outcome.index, "error": outcome.error})
        else:
            yield b"".join(map(_line, outcome.poses))
    summary = {
        "category": version.category,
        "version": version.name,
        "pictures": pictures,
        "poses": poses,
        "failed": failed,
        "links": version.links,
        "timing_ms": describe_timing(stages_ms, started),
    }
    yield _line({"summary": summary})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
