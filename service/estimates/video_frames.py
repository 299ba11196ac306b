"""The frames of a video as the pictures of an estimate, decoded one by one in another process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from service.contract.errors import BadVideoFile, PPLError, UnsupportedFormat
from service.contract.media.pictures import Picture, PictureLimits
from service.contract.media.videos import BadVideo, NoDecoder, VideoLimits, frame_name, iter_frames
from service.runtime.settings import Settings

from .pictures import FittedBox, PictureBoxes, fit_boxes


@dataclass(frozen=True)
class FrameUpload:
    """A frame of a video, as :class:`~.pictures.Upload` is a picture; only its squares are kept.

    Attributes:
        fitted: the model's square for each box, or the error.
    """

    index: int
    fitted: list[FittedBox] | PPLError
    extra: dict[str, Any] = field(default_factory=dict)

    def fit(self, side: int, limits: PictureLimits) -> list[FittedBox]:
        """Return the squares. Raises BadBoxes."""
        if isinstance(self.fitted, PPLError):
            raise self.fitted
        return self.fitted

    def read(self) -> bytes:
        """Raise BadVideoFile: there is no picture file to draw on."""
        raise BadVideoFile(f"frame {self.index} can't be drawn on")


class VideoFrames:
    """The frames of a video in order; iterable once.

    Args:
        path: of the file.
        filename: as its sender named it.
        every: take the first frame and every n-th after it.
        max_frames: most frames to take.
        side: of the model's square.
        boxes: of every frame.
        in_thread: runs a blocking function.
        skip: indices of taken frames to leave out, as they are done.

    Attributes:
        failure: why the video ended early, if it did.
        taken: number of frames taken so far.
    """

    def __init__(
        self,
        path: Path,
        filename: str,
        every: int,
        max_frames: int,
        side: int,
        boxes: PictureBoxes,
        limits: VideoLimits,
        in_thread: Callable[..., Any],
        skip: Container[int] = (),
    ) -> None:
        self.failure: PPLError | None = None
        self.taken = 0
        self._side = side
        self._lock = Lock()  # the reader may be cancelled while a frame is decoded
        self._filename = filename or "video"
        self._boxes = boxes
        self._skip = skip
        self._in_thread = in_thread
        self._stopped = False
        self._frames = iter_frames(path, max_frames, limits, self._check_stopped, every)

    async def __aiter__(self) -> AsyncIterator[FrameUpload]:
        """Yield the frames. Damage ends them early and is stored in ``failure``.

        Raises:
            BadVideoFile, UnsupportedFormat: not one frame can be read.
        """
        try:
            while True:
                frame = await self._next()
                if frame is None:
                    return
                if frame.index not in self._skip:
                    yield frame
        except PPLError as error:
            if not self.taken:
                raise
            self.failure = error
        finally:
            self._stopped = True
            await asyncio.shield(asyncio.ensure_future(self._in_thread(self._close)))

    async def _next(self) -> FrameUpload | None:
        try:
            frame: FrameUpload | None = await self._in_thread(self._read)
        except BadVideo as error:
            raise BadVideoFile(f"{self._filename[:60]}: {error}") from error
        except NoDecoder as error:
            raise UnsupportedFormat(f"{self._filename[:60]}: {error}") from error
        return frame

    def _read(self) -> FrameUpload | None:
        with self._lock:
            frame = next(self._frames, None)
        if frame is None:
            return None
        index = self.taken
        fitted: list[FittedBox] | PPLError
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

    def _check_stopped(self) -> None:
        if self._stopped:
            raise BadVideo("reading was stopped")


def video_limits(settings: Settings, timeout_s: float) -> VideoLimits:
    """Return the limits of a video to estimate; its bytes are limited where it is received."""
    return VideoLimits(
        max_pixels=settings.image_max_pixels,
        min_side_px=settings.image_min_side_px,
        memory_bytes=settings.video_memory_bytes,
        timeout_s=timeout_s,
    )
