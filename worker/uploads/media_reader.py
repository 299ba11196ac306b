"""Read an upload's pictures and videos, count the files by outcome, and write the squares that training reads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data import natural_key
from service.contract.durable_files import atomic_write
from service.contract.errors import BadPicture, PPLError, TrainingFailed
from service.contract.jobs.warnings import PictureWarning
from service.contract.media import tiff
from service.contract.media.archives import ArchiveLimits, Member, find_white
from service.contract.media.fitting import Frame
from service.contract.media.locating import clip_of_picture
from service.contract.media.pictures import Picture, PictureLimits, open_reduced
from service.contract.media.video_request import VideoLimits
from service.contract.media.videos import BadVideo, NoDecoder, frame_name, iter_frames
from service.contract.media.zip_names import replace_surrogates
from worker.settings import WorkerSettings

Keep = Callable[[Picture, str, str], str | None]  # a picture, its name, its clip's; returns why it is skipped

MIN_CLIP_FRAMES = 2  # training pairs each frame with another one
_MAX_LISTED = 20  # skipped files listed in the job
_MAX_NAME = 200
_MAX_DECODER_THREADS = 4  # each takes memory
_COPY_BATCH = 1024  # pictures


@dataclass
class FileCounts:
    """Counts of an upload's pictures, video frames and skipped files.

    Attributes:
        images: squares to train on.
        skipped: files that can't be read fully, and clips that are too short.
        skipped_files: the first of them, as {"name", "reason"}.
        clips: number of clips; set once all files are read.
        located: how the thing was found: by "boxes" or "motion", the usual "side_px", a "note".
        warnings: what seems wrong with the pictures; no metric.
    """

    images: int = 0
    skipped: int = 0
    skipped_files: list[dict[str, str]] = field(default_factory=list)
    mode: str | None = None
    clips: int = 0
    located: dict[str, Any] | None = None
    warnings: list[PictureWarning] = field(default_factory=list)
    _skipped_names: set[str] = field(default_factory=set)

    def skip(self, name: str, reason: str) -> None:
        """Count a file that can't be read."""
        self.skipped += 1
        self._skipped_names.add(name)
        if len(self.skipped_files) < _MAX_LISTED:
            self.skipped_files.append({"name": shorten_name(name), "reason": reason})

    def drop_short_clips(self, clips: dict[str, int]) -> None:
        """Subtract the frames of short clips, given by name; a clip already skipped as damaged is not counted again."""
        for clip, frames in clips.items():
            self.images -= frames
            if clip not in self._skipped_names:
                self.skip(clip, f"the clip has {frames} readable frame; at least {MIN_CLIP_FRAMES} are needed")

    def to_metrics(self) -> dict[str, Any]:
        """Return the counts as the job's metrics."""
        left_out = {"_skipped_names", "warnings", *([] if self.located else ["located"])}
        return {name: copy(value) for name, value in vars(self).items() if name not in left_out}


class MediaReader:
    """A decoder of pictures and videos that counts unreadable files as skipped.

    Args:
        keep: called with each picture and frame; one for which it returns a reason is counted as skipped.
        reduction_for_boxes: returns by how much a picture may be reduced while decoding, see `open_reduced`.
        frames_per_clip: number of frames to take from a video.
        folder: folder for a video's copy while it is decoded.
        check: called often while a video is decoded; its exceptions end the decoding.
        longer_side: reduce a video's larger frames to this many pixels, whatever their picture's ``scale`` says; None
            keeps their size.
    """

    def __init__(
        self,
        keep: Keep,
        reduction_for_boxes: Callable[[int, int], float],
        counts: FileCounts,
        frames_per_clip: int,
        settings: WorkerSettings,
        folder: Path,
        check: Callable[[], None],
        longer_side: int | None = None,
    ) -> None:
        self._longer_side = longer_side
        self._on_picture, self._reducible, self._check = keep, reduction_for_boxes, check
        self._counts, self._frames_per_clip = counts, frames_per_clip
        self._copy = folder / "video"
        self._picture_limits = PictureLimits.of(settings)
        self._white = 0.0
        self._video_limits = VideoLimits(
            max_pixels=settings.image_max_pixels,
            min_side_px=settings.image_min_side_px,
            max_bytes=settings.video_max_bytes,
            max_frames=settings.video_max_frames,
            max_duration_s=settings.video_max_duration_s,
            timeout_s=settings.video_timeout_s,
            memory_bytes=settings.video_memory_bytes,
            threads=min(_MAX_DECODER_THREADS, settings.training_threads),
        )

    def measure(self, path: Path, limits: ArchiveLimits) -> None:
        """Find what is white in the upload's pictures of more than 8 bits; read them once more for it."""
        self._white = find_white(path, limits, self._picture_limits, self._check)

    def read_picture(self, data: bytes | BadPicture, name: str) -> None:
        """Decode a picture from its bytes; an error in their place is counted."""
        try:
            if isinstance(data, BadPicture):
                raise data
            picture = open_reduced(data, self._reducible, self._picture_limits, white=self._white)
        except BadPicture as error:
            self._counts.skip(name, error.detail)
        else:
            self._keep(picture, name, clip_of_picture(name))

    def read_video(self, video: Member, name: str) -> None:
        """Decode a video's frames; of a damaged video, those before the damage.

        Raises TrainingFailed if the decoder is not installed.
        """
        before = self._counts.images
        try:
            if video.size > self._video_limits.max_bytes:
                raise BadVideo(f"the video has {video.size} bytes; at most {self._video_limits.max_bytes} are allowed")
            path = video.path or self._unpack(video)
            if video.is_tiff and not video.bare_video and not _has_pages(path):
                largest = self._picture_limits.max_bytes
                raise BadVideo(f"the picture has {video.size} bytes; at most {largest} are allowed, scale it down")
            read = partial(iter_frames, path, self._frames_per_clip, self._video_limits, self._check)
            for frame in read(longer_side=self._longer_side):
                self._keep(Picture(frame.image, *frame.size), frame_name(name, frame.number), name)
        except BadVideo as error:
            kept = self._counts.images - before
            enough = kept >= (MIN_CLIP_FRAMES if self._counts.mode == "clips" else 1)
            self._counts.skip(name, f"{error}; {kept} frames from before are kept" if enough else str(error))
        except NoDecoder as error:
            raise TrainingFailed(str(error)) from error
        finally:
            self._copy.unlink(missing_ok=True)

    def _keep(self, picture: Picture, name: str, clip: str) -> None:
        if why := self._on_picture(picture, name, clip):
            self._counts.skip(name, why)
        else:
            self._counts.images += 1

    def _unpack(self, video: Member) -> Path:
        try:
            video.copy(self._copy)
        except PPLError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # not the archive's fault, e.g. disk full
                raise
            raise BadVideo(f"damaged in the archive ({error or type(error).__name__})") from error
        return self._copy


def _has_pages(path: Path) -> bool:
    with path.open("rb") as file:
        return tiff.is_stack(file)


def shorten_name(name: str) -> str:
    """Return the end of a file's name, valid in JSON."""
    return replace_surrogates(name[-_MAX_NAME:])


class TrainingSet:
    """Squares in the order of arrival, sorted into clips at the end.

    The file of squares is an .npy of uint8 (N, S, S, 3), written square by square; N is written at the end.

    ``arrange_clips`` writes the .npy of clip numbers. ``names`` of the squares, ``clip_names``, ``sizes`` of the
    original pictures, width and height in pixels, their EXIF ``orientations``, and ``frames``, left, top and side of
    the squares on them in pixels and the angle of rotated ones in degrees, are in the order of the file.
    """

    def __init__(self, pictures: Path, clips: Path, side: int) -> None:
        self._pictures, self._clips, self._side = pictures, clips, side
        self._file = pictures.open("wb")
        self.clip_names: list[str] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.frames: list[tuple[float, ...]] = []
        self.orientations: list[int] = []
        self._header_bytes = self._write_header()

    def __enter__(self) -> TrainingSet:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                assert self._write_header() == self._header_bytes  # numpy pads the header for a longer N
                self._file.flush()
                os.fsync(self._file.fileno())

    def append(
        self,
        square: NDArray[np.uint8],
        name: str,
        clip: str,
        size: tuple[int, int],
        frame: Frame,
        orientation: int = 1,
    ) -> None:
        """Add a square (S, S, 3), its name, its clip, the original size and where the square lies on the picture."""
        self._file.write(np.ascontiguousarray(square).data)
        self.names.append(name)
        self.sizes.append(size)
        self.frames.append((frame.x0, frame.y0, frame.size, *((frame.angle,) if frame.angle else ())))
        self.orientations.append(orientation)
        self.clip_names.append(clip)

    def arrange_clips(self) -> tuple[int, dict[str, int]]:
        """Sort the file by clip and frame, in natural order, without clips of a single frame; call it after the block.

        Returns the number of clips, and the number of frames of each clip left out, by name.
        """
        counts = Counter(self.clip_names)
        kept = sorted((clip for clip, count in counts.items() if count >= MIN_CLIP_FRAMES), key=natural_key)
        numbers = {clip: number for number, clip in enumerate(kept)}
        order = [index for index, clip in enumerate(self.clip_names) if clip in numbers]
        order.sort(key=lambda index: (numbers[self.clip_names[index]], natural_key(self.names[index])))
        if order != list(range(len(self.names))):
            copy_rows(np.load(self._pictures, mmap_mode="r", allow_pickle=False), np.array(order, int), self._pictures)
        clips = np.array([numbers[self.clip_names[index]] for index in order], dtype=np.int64)
        with atomic_write(self._clips) as file:
            np.save(file, clips, allow_pickle=False)
        self.names, self.sizes = [self.names[index] for index in order], [self.sizes[index] for index in order]
        self.frames = [self.frames[index] for index in order]
        self.orientations = [self.orientations[index] for index in order]
        self.clip_names = [self.clip_names[index] for index in order]
        return len(kept), {clip: count for clip, count in counts.items() if clip not in numbers}

    def _write_header(self) -> int:
        shape = (len(self.names), self._side, self._side, 3)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return self._file.tell()


def copy_rows(images: NDArray[np.uint8], rows: NDArray[np.int64], path: Path) -> None:
    """Write some pictures into an .npy of their own, a few at a time because they may not fit in memory."""
    with atomic_write(path) as file:
        out = np.lib.format.open_memmap(file.name, "w+", np.uint8, (len(rows), *images.shape[1:]))
        for first in range(0, len(rows), _COPY_BATCH):
            out[first : first + _COPY_BATCH] = images[rows[first : first + _COPY_BATCH]]
        out.flush()
