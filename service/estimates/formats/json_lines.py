"""JSON lines: a line for each pose or failed picture in order of completion, and a summary at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.estimates.results import STAGES, Outcome, Results, describe_timing
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
    counts, stages_ms = Counter[str](), np.zeros(len(STAGES))
    async for outcome in outcomes:
        stages_ms += outcome.timing_ms
        yield _outcome_lines(outcome, counts)
    yield _summary_line(version, counts, describe_timing(stages_ms, started))


def render_document(results: Results) -> Iterator[bytes]:
    """Yield the same lines in the order of pictures."""
    counts = Counter[str]()
    for outcome in results.outcomes:
        yield _outcome_lines(outcome, counts)
    more = {} if results.outliers is None else {"outliers": results.outliers}
    yield _summary_line(results.version, counts, results.timing_ms, **more)


def _outcome_lines(outcome: Outcome, counts: Counter[str]) -> bytes:
    counts.update(pictures=1, poses=len(outcome.poses), failed=int(outcome.error is not None))
    lines = b"".join(map(_line, outcome.poses))
    return _line({"index": outcome.index, "error": outcome.error}) + lines if outcome.error else lines


def _summary_line(version: Version, counts: Counter[str], timing_ms: dict[str, float], **more: Any) -> bytes:
    numbers = {name: counts[name] for name in ("pictures", "poses", "failed")}
    head = {"category": version.category, "version": version.name}
    return _line({"summary": {**head, **numbers, "links": version.links, "timing_ms": timing_ms, **more}})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
