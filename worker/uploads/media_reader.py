"""Read the pictures and videos of an upload, one at a time, and count the files by outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.contract.errors import BadPicture, PPLError, TrainingFailed
from service.contract.media.archives import Member
from service.contract.media.pictures import Picture, PictureLimits, open_reduced
from service.contract.media.videos import BadVideo, NoDecoder, VideoLimits, frame_name, iter_frames
from worker.settings import WorkerSettings

from .square_files import MIN_CLIP_FRAMES, clip_of_picture

Keep = Callable[[Picture, str, str], None]  # a picture, its name, the name of its clip

_MAX_LISTED = 20  # skipped files listed in the job
_MAX_NAME = 200
_MAX_DECODER_THREADS = 4  # each takes memory


@dataclass
class FileCounts:
    """Counts of an upload's pictures, video frames and skipped files.

    Attributes:
        images: squares to train on.
        skipped: files that can't be read fully, and clips that are too short.
        skipped_files: the first of them, as {"name", "reason"}.
        mode: "stills" or "clips"; None until the first file.
        clips: number of clips; set once all files are read.
    """

    images: int = 0
    skipped: int = 0
    skipped_files: list[dict[str, str]] = field(default_factory=list)
    mode: str | None = None
    clips: int = 0
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
        return {
            "images": self.images,
            "skipped": self.skipped,
            "skipped_files": list(self.skipped_files),
            "mode": self.mode,
            "clips": self.clips,
        }


class MediaReader:
    """A decoder of pictures and videos that counts unreadable files as skipped.

    Args:
        keep: called with each picture and frame.
        reduction_for_boxes: returns by how much a picture may be reduced while decoding, see `open_reduced`.
        frames_per_clip: number of frames to take from a video.
        folder: for a video's copy while it is decoded.
        check: called often while a video is decoded; its exceptions end the decoding.
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
    ) -> None:
        self._on_picture = keep
        self._reducible = reduction_for_boxes
        self._counts = counts
        self._frames_per_clip = frames_per_clip
        self._picture_limits = PictureLimits.of(settings)
        self._video_limits = _video_limits(settings)
        self._copy = folder / "video"
        self._check = check

    def read_picture(self, data: bytes | BadPicture, name: str) -> None:
        """Decode a picture from its bytes; an error in their place is counted."""
        try:
            if isinstance(data, BadPicture):
                raise data
            picture = open_reduced(data, self._reducible, self._picture_limits)
        except BadPicture as error:
            self._counts.skip(name, error.detail)
        else:
            self._keep(picture, name, clip_of_picture(name))

    def read_video(self, video: Member, name: str) -> None:
        """Decode a video's frames; of a damaged video, those before the damage.

        Raises:
            TrainingFailed: the decoder is not installed.
        """
        before = self._counts.images
        try:
            if video.size > self._video_limits.max_bytes:
                raise BadVideo(f"the video has {video.size} bytes; at most {self._video_limits.max_bytes} are allowed")
            path = video.path or self._unpack(video)
            for number, image in iter_frames(path, self._frames_per_clip, self._video_limits, self._check):
                self._keep(Picture.of(image), frame_name(name, number), name)
        except BadVideo as error:
            kept = self._counts.images - before
            enough = kept >= (MIN_CLIP_FRAMES if self._counts.mode == "clips" else 1)
            self._counts.skip(name, f"{error}; {kept} frames from before are kept" if enough else str(error))
        except NoDecoder as error:
            raise TrainingFailed(str(error)) from error
        finally:
            self._copy.unlink(missing_ok=True)

    def _keep(self, picture: Picture, name: str, clip: str) -> None:
        self._on_picture(picture, name, clip)
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


def shorten_name(name: str) -> str:
    """Return the end of a file's name, valid in JSON."""
    return replace_surrogates(name[-_MAX_NAME:])


def replace_surrogates(name: str) -> str:
    """Return a name that JSON can carry: names in archives may hold bytes that are not text."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _video_limits(settings: WorkerSettings) -> VideoLimits:
    return VideoLimits(
        max_pixels=settings.image_max_pixels,
        min_side_px=settings.image_min_side_px,
        max_bytes=settings.video_max_bytes,
        max_frames=settings.video_max_frames,
        max_duration_s=settings.video_max_duration_s,
        timeout_s=settings.video_timeout_s,
        memory_bytes=settings.video_memory_bytes,
        threads=min(_MAX_DECODER_THREADS, settings.training_threads),
    )
