"""Write the results of an estimate in the background: smoothed tracks, poses, and the video with its poses drawn."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.contract.durable_files import atomic_write
from service.contract.errors import BadVideoFile
from service.contract.media.video_request import DecodeRequest, VideoLimits
from service.estimates.drawing import drawn_links
from service.estimates.formats.registry import FORMATS
from service.estimates.request import Query
from service.estimates.results import Results, StoredOutcomes
from service.estimates.smoothing import SmoothTracks
from service.estimates.store import EstimateRecord, EstimateStore
from service.http.problems import problem_document
from service.versions.reader import Version

_POLL_S = 1.0
_DRAWER_THREADS = 2
_MAX_REASON = 300
_OWN = ("native", "jsonl")  # formats that have smoothed keypoints and errors beside the raw poses


class ResultFiles:
    """The files of an estimate whose pictures are all done.

    Args:
        started: `time.perf_counter` at its start.
        landmarks: names of those in the poses.
    """

    def __init__(
        self,
        store: EstimateStore,
        record: EstimateRecord,
        query: Query,
        version: Version,
        started: float,
        landmarks: Sequence[str],
    ) -> None:
        self._store, self._record, self._query, self._version = store, record, query, version
        self._started, self._landmarks = started, landmarks
        self._outcomes = self._raw = StoredOutcomes(self._path("lines"))
        self._outliers: list[dict[str, Any]] | None = None

    def _path(self, name: str) -> Path:
        return self._store.path(self._record.shown.id, name)

    def smooth(self) -> None:
        """Smooth the tracks if the request asks for it. Blocking."""
        if self._query.smoothing:
            keypoints = len(self._version.keypoint_names)
            tracks = SmoothTracks(self._raw, len(self._raw), keypoints, self._query.smoothing)
            _replace(self._path("smoothed"), (outcome.to_line() for outcome in tracks.outcomes()))
            self._outcomes, self._outliers = StoredOutcomes(self._path("smoothed")), tracks.outliers

    async def draw(self, limits: VideoLimits, is_cancelled: Callable[[], Awaitable[bool]]) -> list[dict[str, Any]]:
        """Draw the poses on the video if the request asks for it, and return a problem if that fails."""
        if not self._query.draws_video:
            return []
        limits_of_drawer = {**asdict(limits), "threads": _DRAWER_THREADS}
        video = DecodeRequest(
            path=str(self._store.picture(self._record.shown.id, 0).resolve()),
            count=sys.maxsize,
            every=self._query.every,
            **limits_of_drawer,
        )
        names = self._version.names or ()
        links = drawn_links(self._version.skeleton)
        draft = self._path("overlay.part")
        request = {
            "video": asdict(video),
            "outcomes": str(self._outcomes.path),
            "output": str(draft),
            "links": [[link.i, link.j, link.strength] for link in links],
            "names": list(names),
            "boxes": [box for box in self._query.boxes[0].boxes if box],
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "service.estimates.video_overlay", json.dumps(request)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        ending = asyncio.ensure_future(process.communicate())
        try:
            while not ending.done():
                await asyncio.wait((ending,), timeout=_POLL_S)
                if not ending.done() and await is_cancelled():
                    return []
        finally:
            if process.returncode is None:
                process.kill()
            reason = (await ending)[0].decode("utf-8", "replace").strip()[:_MAX_REASON]
        if process.returncode == 0:
            draft.replace(self._path("overlay"))
            self._record.shown.overlay_url = f"/estimates/{self._record.shown.id}/overlay"
            return []
        draft.unlink(missing_ok=True)
        label = self._query.names[0] or "video"
        detail = f"{label}: its poses could not be drawn ({reason or f'the drawing ended with {process.returncode}'})"
        return [{**problem_document(BadVideoFile(detail)), "index": len(self._raw)}]

    def store(self, problems: list[dict[str, Any]]) -> None:
        """Write the poses in the format of the request, and the raw ones beside smoothed ones. Blocking."""
        results = self._collect(self._outcomes, self._outliers)
        if results.errors is not None:
            results.errors.extend(problems)
        if self._query.format != "native":
            members = [json.dumps(results.errors)]
            if self._outliers is not None:
                members.append(f'"outliers": {json.dumps(self._outliers)}')
            _replace(self._path("errors"), (", ".join(members).encode(),))
        render = FORMATS[self._query.format].render
        _replace(self._path("result"), render(results))
        if self._query.smoothing and self._query.format not in _OWN:
            _replace(self._path("raw"), render(self._collect(self._raw, None)))
            self._record.shown.raw_url = f"/estimates/{self._record.shown.id}/raw"

    def _collect(self, outcomes: StoredOutcomes, outliers: list[dict[str, Any]] | None) -> Results:
        return Results.collect(
            *(outcomes, self._version, self._query.names, self._query.boxes, self._started),
            video=self._record.video,
            landmarks=self._landmarks,
            outliers=outliers,
        )


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    with atomic_write(path) as file:
        file.writelines(parts)
