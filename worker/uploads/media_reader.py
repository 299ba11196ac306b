"""Pictures and videos of an upload → pictures in memory, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service.contract.errors import BadPicture, PPLError, TrainingFailed
from service.contract.media.archives import Member
from service.contract.media.pictures import Picture, PictureLimits, open_reduced
from service.contract.media.videos import BadVideo, NoDecoder, VideoLimits, frame_name, iter_frames
from worker.settings import WorkerSettings

from .file_counts import Tally
from .square_files import LEAST_FRAMES, clip_of_picture

Keep = Callable[[Picture, str, str], None]  # a picture, its name, that of its clip

_MOST_THREADS = 4  # for decoding; each takes memory


class MediaReader:
    """Decodes pictures and videos; what can't be read is told to the tally.

    Args:
        keep: is given every picture and frame.
        reducible: by how much a picture may be decoded smaller, see open_reduced.
        frames_per_clip: taken of a video.
        folder: for a video of an archive, while it is decoded.
        check: called often while a video is decoded; what it raises ends it.
    """

    def __init__(
        self,
        keep: Keep,
        reducible: Callable[[int, int], float],
        tally: Tally,
        frames_per_clip: int,
        settings: WorkerSettings,
        folder: Path,
        check: Callable[[], None],
    ) -> None:
        self._to = keep
        self._reducible = reducible
        self._tally = tally
        self._frames_per_clip = frames_per_clip
        self._picture_limits = PictureLimits.of(settings)
        self._video_limits = video_limits(settings)
        self._spare = folder / "video"
        self._check = check

    def take_picture(self, data: bytes | BadPicture, name: str) -> None:
        """One picture's bytes, or why there are none."""
        try:
            if isinstance(data, BadPicture):
                raise data
            picture = open_reduced(data, self._reducible, self._picture_limits)
        except BadPicture as error:
            self._tally.skip(name, error.detail)
        else:
            self._keep(picture, name, clip_of_picture(name))

    def take_video(self, video: Member, name: str) -> None:
        """A video's frames; of a damaged one those before the damage."""
        before = self._tally.images
        try:
            if video.size > self._video_limits.max_bytes:
                raise BadVideo(f"{video.size} bytes; at most {self._video_limits.max_bytes} are read")
            path = video.path or self._unpacked(video)
            for number, image in iter_frames(path, self._frames_per_clip, self._video_limits, self._check):
                self._keep(Picture.of(image), frame_name(name, number), name)
        except BadVideo as error:
            kept = self._tally.images - before
            enough = kept >= (LEAST_FRAMES if self._tally.mode == "clips" else 1)
            self._tally.skip(name, f"{error}; {kept} frames from before are kept" if enough else str(error))
        except NoDecoder as error:
            raise TrainingFailed(str(error)) from error
        finally:
            self._spare.unlink(missing_ok=True)

    def _keep(self, picture: Picture, name: str, clip: str) -> None:
        self._to(picture, name, clip)
        self._tally.images += 1

    def _unpacked(self, video: Member) -> Path:
        try:
            video.copy(self._spare)
        except PPLError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # no room, say: not the archive's fault
                raise
            raise BadVideo(f"damaged in the archive ({error or type(error).__name__})") from error
        return self._spare


def video_limits(settings: WorkerSettings) -> VideoLimits:
    """What a video may be and cost, as set."""
    return VideoLimits(
        max_pixels=settings.image_max_pixels,
        min_side_px=settings.image_min_side_px,
        max_bytes=settings.video_max_bytes,
        max_frames=settings.video_max_frames,
        max_duration_s=settings.video_max_duration_s,
        timeout_s=settings.video_timeout_s,
        memory_bytes=settings.video_memory_bytes,
        threads=min(_MOST_THREADS, settings.training_threads),
    )
