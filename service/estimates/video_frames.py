"""The frames of a video as the pictures of an estimate: decoded in a process of their own, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Generator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from service.contract.errors import BadVideoFile, PPLError, UnsupportedFormat
from service.contract.media.pictures import Picture, PictureLimits
from service.contract.media.videos import BadVideo, NoDecoder, TimedFrame, VideoLimits, frame_name, iter_every
from service.http.problems import problem_document

from .boxes import PictureBoxes
from .pictures import Fitted, fit_boxes
from .results import Outcome


@dataclass(frozen=True)
class FrameUpload:
    """A frame of a video, as an :class:`~service.estimates.pictures.Upload` is a picture; only its squares are kept.

    Attributes:
        fitted: the model's square for each of its boxes, or why there is none.
    """

    index: int
    fitted: list[Fitted] | PPLError
    extra: dict[str, Any] = field(default_factory=dict)

    def fit(self, side: int, limits: PictureLimits) -> list[Fitted]:
        """The squares. Raises BadBoxes."""
        if isinstance(self.fitted, PPLError):
            raise self.fitted
        return self.fitted

    def read(self) -> bytes:
        """There is no file of it; what is asked of a video draws nothing."""
        raise BadVideoFile(f"frame {self.index} can't be drawn on")


class VideoFrames:
    """A video's frames in order; read once.

    Args:
        path: of the file.
        filename: as its sender calls it.
        every: the first frame and each so-many-th after it.
        most: frames that may come.
        side: of the model's square.
        boxes: hold for every frame.
        skip: numbers of frames taken that are passed over, as they were worked on before.
        in_thread: runs a blocking function.

    Attributes:
        failure: why it ended early, once it did.
    """

    def __init__(
        self,
        path: Path,
        filename: str,
        every: int,
        most: int,
        side: int,
        boxes: PictureBoxes,
        limits: VideoLimits,
        in_thread: Callable[..., Any],
        skip: Container[int] = (),
    ) -> None:
        self.failure: PPLError | None = None
        self.taken = 0
        self._side = side
        self._lock = Lock()  # its reader may be given up while a frame is decoded
        self._filename = filename or "video"
        self._boxes = boxes
        self._skip = skip
        self._in_thread = in_thread
        self._left = False
        self._frames: Generator[TimedFrame] = iter_every(path, every, most, limits, self._check)

    async def __aiter__(self) -> AsyncIterator[FrameUpload]:
        """The frames; damage ends them and is told in ``failure``.

        Raises:
            BadVideoFile, UnsupportedFormat: nothing of it can be read.
        """
        try:
            while True:
                upload = await self._next()
                if upload is None:
                    return
                if upload.index not in self._skip:
                    yield upload
        except PPLError as error:
            if not self.taken:
                raise
            self.failure = error
        finally:
            self._left = True
            await asyncio.shield(asyncio.ensure_future(self._in_thread(self._close)))

    async def _next(self) -> FrameUpload | None:
        try:
            found: FrameUpload | None = await self._in_thread(self._read)
        except BadVideo as error:
            raise BadVideoFile(f"{self._filename[:60]}: {error}") from error
        except NoDecoder as error:
            raise UnsupportedFormat(f"{self._filename[:60]}: {error}") from error
        return found

    def _read(self) -> FrameUpload | None:
        with self._lock:
            frame = next(self._frames, None)
        if frame is None:
            return None
        index = self.taken
        fitted: list[Fitted] | PPLError
        self.taken += 1
        try:
            fitted = fit_boxes(Picture.of(frame.image), index, self._boxes, self._side)
        except PPLError as error:
            name = frame_name(self._filename[:60], frame.number)
            fitted = type(error)(f"{name}: {error.detail}", extra={"index": index})
        return FrameUpload(index, fitted, {"frame": frame.number, "time_s": round(frame.time_s, 6)})

    def _close(self) -> None:
        with self._lock:
            self._frames.close()

    def _check(self) -> None:
        if self._left:
            raise BadVideo("nobody wants the rest of it")


async def with_failure(outcomes: AsyncIterator[Outcome], frames: VideoFrames) -> AsyncIterator[Outcome]:
    """What came of a video's frames, and at the end why the rest of it could not be read, if that is so."""
    async with aclosing(outcomes):  # type: ignore[type-var]  # a generator
        async for outcome in outcomes:
            yield outcome
    if frames.failure:
        yield Outcome(frames.taken, error={**problem_document(frames.failure), "index": frames.taken})
