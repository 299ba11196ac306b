"""Fit the pictures of an evaluation to the model's square, as a training job does it.

An estimate finds the heading of a picture without an angle by trying directions, so an evaluation asks it for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.scoring.label_fitting import CameSize, fit_labels
from model.scoring.labels import Labels, from_square
from service.client.errors import InputError
from service.contract.errors import BadBoxes, BadPicture, PPLError
from service.contract.media import tiff
from service.contract.media.archives import ArchiveLimits, Member, find_white, iter_media
from service.contract.media.boxes import FoundBox, check_box, fit_found_box, parse_box_file
from service.contract.media.fitting import Frame, reduction_for_boxes
from service.contract.media.locating import Locations, MotionFinder, clip_of_picture, fills_frames
from service.contract.media.pictures import Picture, PictureLimits, is_picture_name, open_reduced
from service.contract.media.videos import BadVideo, NoDecoder, frame_name, iter_frames

FRAMES = 200
"""Most evenly spaced frames of a video, for versions without this setting."""

FindAngle = Callable[[bytes, FoundBox], float]
"""Returns the heading of the thing in a box of a picture file, in degrees clockwise from up. Raises BadPicture."""


@dataclass
class Squares:
    """Pictures fitted to the model's square.

    Attributes:
        names: names of N pictures, with their folders in the archive or folder; frames are named as in a job.
        sizes: width and height of each in pixels, EXIF orientation applied.
        pixels: N squares, uint8 (S, S, 3).
        videos: video of each frame, by the frame's name.
        skipped: {"name", "reason"} of files that could not be read.
        frames: where each square lies on its picture.
        orientations: EXIF's of each stored picture.
        with_several: names of pictures with several boxes, whose most confident one is taken.
        unused_boxes: names in the file of boxes of which there is no picture.
        undirected: boxes, by name, of the pictures whose heading is yet to be found; their squares are upright.
    """

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    videos: dict[str, str] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    orientations: list[int] = field(default_factory=list)
    with_several: list[str] = field(default_factory=list)
    unused_boxes: Sequence[str] = ()
    undirected: dict[str, FoundBox] = field(default_factory=dict)

    def clips(self, *, folders: bool) -> dict[str, str]:
        """Return the clip of each picture by name: its video or, if ``folders`` are clips, its folder."""
        stills = [name for name in self.names if name not in self.videos]
        inside = {name: str(PurePosixPath(name.replace("\\", "/")).parent) for name in stills} if folders else {}
        return self.videos | (inside if len(set(inside.values())) > 1 else {})

    def add(
        self, name: str, picture: Picture, side: int, found: FoundBox | None, *, aligned: bool, tries: bool = False
    ) -> None:
        """Fit a picture, or a box of it, to a square and append it.

        Args:
            tries: whether one without an angle is undirected if ``aligned``; else it raises NoHeading.

        Raises:
            BadBoxes: the box lies outside of the picture, or is far larger.
        """
        if found:
            check_box(found.box, *picture.size)
        if aligned and tries and (found is None or found.angle is None):
            width, height = picture.size
            self.undirected[name] = found or FoundBox((0.0, 0.0, float(width), float(height)))
            aligned = False
        square, frame = fit_found_box(picture, side, found, aligned=aligned)
        self.names.append(name)
        self.sizes.append(picture.size)
        self.pixels.append(square)
        self.frames.append(frame)
        self.orientations.append(picture.orientation)

    def direct(self, paths: Sequence[Path], side: int, find_angle: FindAngle) -> None:
        """Rotate the squares of undirected pictures to their headings; skip those whose heading can't be found.

        Args:
            paths, side: as of :func:`read_squares`.

        Raises:
            InputError: none is left.
        """
        rows, failed = {name: row for row, name in enumerate(self.names)}, set[int]()
        for name, data, picture in _iter_stills(paths, self.undirected, side):
            row, found = rows[name], self.undirected[name]
            try:
                found = replace(found, angle=find_angle(data, found))
            except BadPicture as error:
                failed.add(row)
                self.skipped.append({"name": name, "reason": error.detail})
            else:
                self.pixels[row], self.frames[row] = fit_found_box(picture, side, found, aligned=True)
        self.undirected = {}
        columns: list[list[Any]] = [self.names, self.sizes, self.pixels, self.frames, self.orientations]
        for values in columns:
            values[:] = [value for row, value in enumerate(values) if row not in failed]
        self.check_any()

    def check_any(self) -> None:
        """Raise InputError if not one picture could be read."""
        if not self.names:
            reasons = "".join(f"; {item['name']}: {item['reason']}" for item in self.skipped[:3])
            raise InputError(f"no picture could be read{reasons}")

    def fit(self, labels: Labels) -> Labels:
        """Scale and turn labels that state another size of their pictures. Raises LabelsError."""
        came = zip(labels.match(self.names).tolist(), self.sizes, self.orientations, strict=True)
        return fit_labels(labels, {labels.names[row]: CameSize(*size, turn) for row, size, turn in came if row >= 0})

    def crop(self, labels: Labels) -> Labels:
        """Return labels in [0, 1] of these squares, not of the whole pictures'. Raises LabelsError."""
        rows = labels.match(self.names)
        pairs = [(index, row) for index, row in enumerate(rows.tolist()) if row >= 0]
        sizes = {labels.names[row]: self.sizes[index] for index, row in pairs}
        whole = labels.rows([row for _, row in pairs]).to_square(sizes)
        keypoints = np.zeros_like(labels.keypoints)
        for (index, row), points in zip(pairs, whole.keypoints, strict=True):
            pixels = from_square(points, *self.sizes[index])
            keypoints[row] = (self.frames[index].from_picture(pixels) + 1) / 2
        keypoints[labels.visibility == 0] = 0
        return replace(labels, keypoints=keypoints, in_square=True)


def read_squares(
    paths: Sequence[Path],
    side: int,
    frames: int = FRAMES,
    boxes: Path | None = None,
    locate: str = "off",
    align: str = "off",
    *,
    tries: bool = False,
) -> Squares:
    """Fit pictures to squares of a model's side.

    Args:
        paths: pictures, videos, folders of them, and zips, tars and tar.gz.
        side: S.
        frames: taken of each video, the same as in training.
        boxes: a file of where the thing is in each picture.
        locate, align: the settings of training, the first for pictures without boxes.
        tries: whether headings that are not known are found later, see :meth:`Squares.direct`; those of a video's
            frames are not.

    Raises:
        InputError: an unreadable path, a duplicate name, no picture at all, or a video without PyAV.
    """
    locations = _locate(paths, frames, boxes, locate, align).align(align)
    squares = Squares(with_several=locations.with_several(), unused_boxes=locations.list_lost())
    reduction = reduction_for_boxes(side) if locations.whole else lambda width, height: 1.0
    for name, video, found in _iter_pictures(paths, frames, reduction):
        try:
            if not isinstance(found, Picture):
                raise BadPicture(found)
            box = locations.find_most_confident(name, found.size)
            if box is None and not locations.whole:
                raise BadPicture(locations.missing)
            squares.add(name, found, side, box, aligned=locations.is_aligned, tries=tries and not video)
        except (BadPicture, BadBoxes) as error:
            squares.skipped.append({"name": name, "reason": error.detail})
        else:
            squares.videos |= {name: video} if video else {}
    squares.check_any()
    if len(set(squares.names)) < len(squares.names):
        twice = next(name for name in squares.names if squares.names.count(name) > 1)
        raise InputError(f"two pictures are called {twice}; names must be unique, as labels refer to them")
    return squares


def _locate(paths: Sequence[Path], frames: int, boxes: Path | None, locate: str, align: str) -> Locations:
    """Return where the thing is in each picture, as a training job finds it."""
    if boxes is None and locate == "off":
        return Locations()
    names = []
    with TemporaryFile(prefix="ppl-") as file:
        # a training with "heading" refuses pictures of which motion is not sure, and an estimate does not
        finder = MotionFinder(file, is_required=locate == "motion", align="off" if align == "off" else "auto")
        for name, video, found in _iter_pictures(paths, frames, finder.reduction):
            if isinstance(found, Picture):
                names.append(name)
                if locate != "off" and (video or finder.wants(name)):
                    finder.keep(found, name, video or clip_of_picture(name))
        try:
            if boxes is None:
                return finder.locate()
            sent = parse_box_file(boxes.read_bytes())
            locations = Locations.of_file(sent, names)
            is_used = fills_frames(locate, sent) and locations.needs_motion(align)
            return finder.locate(locations) if is_used else locations
        except (OSError, PPLError) as error:
            raise InputError(f"the boxes can't be used: {getattr(error, 'detail', error)}") from error


def _iter_pictures(
    paths: Sequence[Path], frames: int, reduction: Callable[[int, int], float]
) -> Iterator[tuple[str, str | None, Picture | str]]:
    """Yield the name of each picture and frame, the video of a frame, and the picture or why it can't be read."""
    white = _find_white(paths)
    for name, found in _iter_media(paths):
        try:
            if isinstance(found, BadPicture):
                raise found
            if isinstance(found, Member):
                with _extract(found) as path:
                    for number, _, image, _ in iter_frames(path, frames):  # up to where the video is damaged
                        yield frame_name(name, number), name, Picture.of(image)
            else:
                yield name, None, open_reduced(found, reduction, white=white)
        except (BadPicture, BadVideo) as error:
            yield name, None, error.detail if isinstance(error, BadPicture) else str(error)
        except NoDecoder as error:
            raise InputError("videos need PyAV: pip install 'pose-prior-learner[video]'") from error


def _iter_stills(
    paths: Sequence[Path], boxes: Mapping[str, FoundBox], side: int
) -> Iterator[tuple[str, bytes, Picture]]:
    """Yield the name, the file and the content of the pictures with these boxes, which can be read."""
    white = _find_white(paths)
    for name, found in _iter_media(paths):
        if isinstance(found, bytes) and name in boxes:
            yield name, found, open_reduced(found, reduction_for_boxes(side, [boxes[name].box]), white=white)


def _find_white(paths: Sequence[Path]) -> float:
    uploads = (path for path in paths if not is_picture_name(path.name))
    return max((find_white(path, ArchiveLimits(), PictureLimits()) for path in uploads if path.exists()), default=0.0)


@contextmanager
def _extract(video: Member) -> Iterator[Path]:
    if video.path:
        yield video.path
        return
    with TemporaryDirectory(prefix="ppl-") as folder:
        path = Path(folder) / "video"
        try:
            video.copy(path)
        except Exception as error:
            is_system_error = isinstance(error, OSError) and error.errno is not None  # for example, no space left
            if is_system_error or isinstance(error, PPLError):
                raise
            raise BadVideo(f"damaged in the archive ({error or type(error).__name__})") from error
        yield path


def _is_stack(path: Path) -> bool:
    with path.open("rb") as file:
        return tiff.is_stack(file)


def _iter_media(paths: Sequence[Path]) -> Iterator[tuple[str, bytes | BadPicture | Member]]:
    for path in paths:
        try:
            if path.is_file() and is_picture_name(path.name) and not _is_stack(path):
                yield path.name, path.read_bytes()
            else:
                for name, found in iter_media(path):
                    yield path.name if isinstance(found, Member) and found.bare_video else name, found
        except (OSError, PPLError) as error:
            reason = error.detail if isinstance(error, PPLError) else error.strerror or error
            raise InputError(f"can't read {path}: {reason}") from error
