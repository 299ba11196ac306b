"""Pictures and video frames fitted to the model's square, as the server fits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from service.client.errors import InputError
from service.contract.errors import BadPicture, PPLError
from service.contract.media.archives import Member, iter_media
from service.contract.media.fitting import fit_square, reduction_for_boxes
from service.contract.media.pictures import Picture, is_picture_name, open_reduced
from service.contract.media.videos import BadVideo, NoDecoder, frame_name, iter_frames

DEFAULT_FRAMES = 200  # most evenly spaced frames of a video, for versions without this setting


@dataclass
class Squares:
    """Pictures fitted to the model's square.

    Attributes:
        names: of N pictures, with their folders in the archive or folder; frames are named as in a job.
        sizes: width and height of each in pixels, EXIF orientation applied.
        pixels: N squares, uint8 (S, S, 3).
        videos: video of each frame, by the frame's name.
        skipped: {"name", "reason"} of files that could not be read.
    """

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    videos: dict[str, str] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def clips(self, *, folders: bool) -> dict[str, str]:
        """Return the clip of each picture by name: its video or, if ``folders`` are clips, its folder."""
        stills = [name for name in self.names if name not in self.videos]
        inside = {name: str(PurePosixPath(name.replace("\\", "/")).parent) for name in stills} if folders else {}
        return self.videos | (inside if len(set(inside.values())) > 1 else {})

    def add(self, name: str, picture: Picture, side: int) -> None:
        """Fit a picture to a square and append it."""
        self.names.append(name)
        self.sizes.append(picture.size)
        self.pixels.append(fit_square(picture, side)[0])


def read_squares(paths: Sequence[Path], side: int, frames: int = DEFAULT_FRAMES) -> Squares:
    """Fit pictures to squares of a model's side.

    Args:
        paths: pictures, videos, folders of them, and zips, tars and tar.gz.
        side: S.
        frames: taken of each video, the same as in training.

    Raises:
        InputError: an unreadable path, a duplicate name, no picture at all, or a video without PyAV.
    """
    squares = Squares()
    for name, found in _iter_media(paths):
        try:
            if isinstance(found, BadPicture):
                raise found
            if isinstance(found, Member):
                _add_frames(squares, name, found, side, frames)
            else:
                squares.add(name, open_reduced(found, reduction_for_boxes(side)), side)
        except (BadPicture, BadVideo) as error:
            reason = error.detail if isinstance(error, BadPicture) else str(error)
            squares.skipped.append({"name": name, "reason": reason})
        except NoDecoder as error:
            raise InputError("videos need PyAV: pip install 'pose-prior-learner[video]'") from error
    if not squares.names:
        reasons = "".join(f"; {item['name']}: {item['reason']}" for item in squares.skipped[:3])
        raise InputError(f"no picture could be read{reasons}")
    if len(set(squares.names)) < len(squares.names):
        twice = next(name for name in squares.names if squares.names.count(name) > 1)
        raise InputError(f"two pictures are called {twice}; names must be unique, as labels refer to them")
    return squares


def _add_frames(squares: Squares, name: str, video: Member, side: int, count: int) -> None:
    """Append a video's frames, up to where it is damaged. Raises BadVideo, NoDecoder."""
    with _extract(video) as path:
        for number, _, image in iter_frames(path, count):
            squares.add(frame_name(name, number), Picture.of(image), side)
            squares.videos[frame_name(name, number)] = name


@contextmanager
def _extract(video: Member) -> Iterator[Path]:
    if video.path:
        yield video.path
        return
    with TemporaryDirectory(prefix="ppl-") as folder:
        path = Path(folder) / "video"
        try:
            video.copy(path)
        except PPLError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # for example, no space left
                raise
            raise BadVideo(f"damaged in the archive ({error or type(error).__name__})") from error
        yield path


def _iter_media(paths: Sequence[Path]) -> Iterator[tuple[str, bytes | BadPicture | Member]]:
    for path in paths:
        try:
            if path.is_file() and is_picture_name(path.name):
                yield path.name, path.read_bytes()
            else:
                for name, found in iter_media(path):
                    yield path.name if isinstance(found, Member) and found.bare_video else name, found
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror or error}") from error
        except PPLError as error:
            raise InputError(f"can't read {path}: {error.detail}") from error
