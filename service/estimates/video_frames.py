"""The frames of a video as the pictures of an estimate, decoded one by one in another process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Container, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Event, Lock

from PIL.Image import Image

from service.contract.errors import BadVideoFile, PPLError, TooManyImages, UnsupportedFormat
from service.contract.media.motion import LONGER_SIDE
from service.contract.media.pictures import Picture
from service.contract.media.video_request import VideoLimits
from service.contract.media.videos import BadVideo, NoDecoder, TooManyFrames, frame_name, iter_frames
from service.runtime.concurrency import Threads
from service.runtime.settings import Settings

from .boxes import NOTHING, PictureBoxes
from .locating import locate_frames
from .pictures import FrameUpload, Source, fit_boxes
from .request import Query

_MAX_DURATION_S = 48 * 3600.0


async def read_frames(
    path: Path,
    query: Query,
    side: int,
    limits: VideoLimits,
    threads: Threads,
    *,
    max_poses: int,
    skip: Container[int] = (),
) -> AsyncGenerator[Source]:
    """Yield the frames of a video in order.

    Args:
        side: side of the model's square.
        max_poses: in all frames; each box has a pose in every frame.
        skip: indices of finished frames to leave out.

    Raises:
        BadVideoFile: damage ends the frames; ``extra["index"]`` is the number of those before it, missing if none.
        UnsupportedFormat: not one frame can be read.
        TooManyImages.
    """
    name = (query.names[0] or "video")[:60]
    stopped = Event()
    lock = Lock()  # the reader may be cancelled while a frame is decoded

    def check_stopped() -> None:
        if stopped.is_set():
            raise BadVideo("reading was stopped")

    count_frames = max(1, max_poses // query.num_poses)
    frames = iter_frames(path, count_frames, limits, check_stopped, query.every)
    boxes = query.frame_boxes

    def locate() -> Mapping[int, PictureBoxes] | None:
        def read() -> Iterator[tuple[int, Image, tuple[int, int]]]:
            with suppress(BadVideo, NoDecoder):  # raised again when the frames are fitted
                for frame in iter_frames(path, count_frames, limits, check_stopped, query.every, LONGER_SIDE):
                    yield frame.number, frame.image, frame.size

        return locate_frames(
            read(),
            is_required=query.locate == "motion",
            is_aligned=query.is_aligned,
            animals=query.max_animals,
            sent=query.frame_boxes,
        )

    def boxes_of(number: int) -> PictureBoxes:
        return query.boxes[0] if boxes is None else boxes.get(number, NOTHING)

    def fit_next(index: int) -> FrameUpload | None:
        with lock:
            frame = next(frames, None)
        if frame is None:
            return None
        extra = {"frame": frame.number, "time_s": round(frame.time_s, 6)}
        try:
            own = boxes_of(frame.number)
            fitted = fit_boxes(Picture.of(frame.image), index, own, side, query.is_aligned)
            return FrameUpload(index, fitted, extra)
        except PPLError as error:
            detail = f"{frame_name(name, frame.number)}: {error.detail}"
            return FrameUpload(index, type(error)(detail, extra={"index": index}), extra)

    def close() -> None:
        with lock:
            frames.close()

    index = 0
    try:
        if query.locate != "off":
            boxes = await threads.video(locate)
        for index in count():
            frame = await threads.video(fit_next, index)
            if frame is None:
                return
            if index not in skip:
                yield frame
    except TooManyFrames as error:
        raise TooManyImages(
            f"{name}: {error}; send it for an estimate in the background (Prefer: respond-async, --background), which "
            "may have more, or take fewer frames with every"
        ) from error
    except (BadVideo, NoDecoder) as error:
        kind = BadVideoFile if isinstance(error, BadVideo) else UnsupportedFormat
        if index not in skip:
            raise kind(f"{name}: {error}", extra={"index": index} if index else None) from error
    finally:
        stopped.set()
        await asyncio.shield(asyncio.ensure_future(threads.video(close)))


def video_limits(settings: Settings, timeout_s: float) -> VideoLimits:
    """Return the limits of a video to estimate; its bytes are limited where it is received."""
    return VideoLimits(
        max_pixels=settings.image_max_pixels,
        min_side_px=settings.image_min_side_px,
        max_bytes=settings.background_body_bytes,
        max_duration_s=_MAX_DURATION_S,
        memory_bytes=settings.video_memory_bytes,
        timeout_s=timeout_s,
    )
