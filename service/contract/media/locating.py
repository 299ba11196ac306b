"""Find where the thing is in an upload's pictures: by boxes that were sent, or by what moves before a fixed camera.

Where boxes were sent for some frames of a fixed camera, motion fills the others, see :mod:`.corrections`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from statistics import median
from typing import Any, BinaryIO

import numpy as np

from service.contract.errors import BadBoxes, TooFewPictures

from .boxes import BoxFile, FoundBox
from .corrections import correct_track, take_heading
from .heading import is_seen_from_above
from .motion import LONGER_SIDE, NOTHING_LEAVES, NOTHING_MOVES, MotionLocator, Track
from .pictures import Picture

_TRIED = 32  # pictures of a folder after which it is judged whether they come from one fixed camera
_SURE_SHARE = 0.8  # of the frames that are in clips of which motion is sure
_NOTHING_FOUND = "nothing of the usual size moves in it"
NOT_ONE_CAMERA = "not one thing before a fixed camera"


@dataclass
class Locations:
    """The box of each picture of an upload; without boxes all are whole pictures.

    Attributes:
        boxes: found by motion: by the picture's name, in pixels, with their confidence; None where nothing was found.
        missing: why a picture without a box is skipped.
        summary: for the job's metrics.
        is_aligned: whether to rotate pictures so that the thing faces up.
        file: boxes that were sent.
        entries: by the picture's name, that of its boxes in the file; None for a picture that the file does not name.
        sizes: of the pictures, in pixels, where motion filled those that the file does not name.
        unused: names in the file, with a box, of which there is no picture.
    """

    boxes: Mapping[str, FoundBox | None] | None = None
    missing: str = ""
    summary: dict[str, Any] | None = None
    is_aligned: bool = False
    file: BoxFile | None = None
    entries: dict[str, str | None] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unused: Sequence[str] = ()

    @property
    def whole(self) -> bool:
        """Whether all pictures are taken whole."""
        return self.boxes is None and self.file is None

    def find_most_confident(self, name: str, size: tuple[int, int]) -> FoundBox | None:
        """Return the most confident box of a picture in pixels; None for one without."""
        found = self.find_all(name, size)
        return found[0] if found else None

    def find_all(self, name: str, size: tuple[int, int]) -> list[FoundBox]:
        """Return all boxes of a picture in pixels with their confidence, the most confident first."""
        found, entry = (self.boxes or {}).get(name), self.entries.get(name)
        if self.file is not None and entry is not None:
            return take_heading(self.file.of(entry, size), found)
        return [found] if found else []

    def align(self, setting: str) -> Locations:
        """Return a copy with ``is_aligned`` by the setting of training; if it is false, motion's boxes are upright."""
        boxes = self._list_most_confident()
        if not is_aligned_by(setting, boxes):
            upright = {name: box and box.upright() for name, box in self.boxes.items()} if self.boxes else self.boxes
            return replace(self, boxes=upright, is_aligned=False)
        headings = sum(box.angle is not None for box in boxes)
        summary = self.summary if self.boxes is None else {**(self.summary or {}), "headings": headings}
        return replace(self, summary=summary, is_aligned=True)

    def _list_most_confident(self) -> list[FoundBox]:
        """Return the most confident box of each picture with any, in pixels or, of a file alone, in its own units."""
        if self.file is None:
            return [box for box in (self.boxes or {}).values() if box]
        found = []
        for name, entry in self.entries.items():
            if entry is None or name in self.sizes:
                found.append(self.find_most_confident(name, self.sizes.get(name, (0, 0))))
            else:
                found += self.file.boxes[entry][:1]
        return [box for box in found if box]

    @property
    def has_boxes(self) -> bool:
        """Whether any picture has a box."""
        return bool(self._list_most_confident())

    @property
    def knows_heading(self) -> bool:
        """Whether any picture's most confident box has an angle."""
        return any(box.angle is not None for box in self._list_most_confident())

    @property
    def names_all(self) -> bool:
        """Whether the file of boxes names every picture."""
        return None not in self.entries.values()

    def needs_motion(self, align: str) -> bool:
        """Return whether motion may add to the file: boxes of pictures, or headings if they may be rotated."""
        if align == "off" or self.file is None:
            return not self.names_all
        boxes = self.file.boxes
        return not all(
            entry is not None and all(box.angle is not None for box in boxes[entry]) for entry in self.entries.values()
        )

    def list_lost(self) -> Sequence[str]:
        """Return the unused names of a file, unless each picture has boxes or the file lists every frame."""
        return () if self.names_all or (self.file and self.file.is_complete) else self.unused

    def with_several(self) -> list[str]:
        """Return the names of the pictures with several boxes."""
        boxes = self.file.boxes if self.file else {}
        return [name for name, entry in self.entries.items() if len(boxes.get(entry or "", ())) > 1]

    @classmethod
    def of_file(cls, file: BoxFile, names: list[str]) -> Locations:
        """Match the boxes that were sent with the pictures. Raises BadBoxes."""
        entries = dict(zip(names, file.match(names), strict=True))
        used = frozenset(entries.values())
        unused = [name for name, boxes in file.boxes.items() if boxes and name not in used]
        summary = {"by": "boxes", "note": None}
        return cls(missing="no box of it came", summary=summary, file=file, entries=entries, unused=unused)


@dataclass
class Motion:
    """What moves in the frames of an upload.

    Attributes:
        boxes: by the frame's name, in pixels; None where nothing was found. Clips that were given up have none.
        count: frames kept, and those of clips that were given up.
        sure: of these, frames of clips of which motion is sure.
        reasons: why it is not sure of the other clips.
    """

    boxes: dict[str, FoundBox | None] = field(default_factory=dict)
    count: int = 0
    sure: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def is_sure(self) -> bool:
        """Whether motion is sure of most frames: a training then crops to the boxes by itself."""
        return self.side_px is not None and self.sure >= _SURE_SHARE * self.count

    @property
    def side_px(self) -> float | None:
        """The usual side of the boxes; None without any."""
        sides = [each.box[2] for each in self.found().values()]
        return round(median(sides), 1) if sides else None

    @property
    def note(self) -> str | None:
        """The first reasons."""
        return "; ".join(self.reasons[:3]) or None

    @property
    def is_from_above(self) -> bool:
        """Whether the thing seems to be seen from above, so that a training with ``align=auto`` rotates it."""
        return is_aligned_by("auto", list(self.found().values()))

    def found(self) -> dict[str, FoundBox]:
        """Return the boxes without the frames in which nothing was found."""
        return {name: each for name, each in self.boxes.items() if each}


class MotionFinder:
    """A locator of the thing in each clip, a video or a folder of pictures, by motion.

    Args:
        is_required: whether to use motion where it is not sure, too.
        align: the setting of training; unless it is "off", the thing's heading is found, too.
        file: a temporary one, for small copies of the frames.
    """

    def __init__(self, file: BinaryIO, *, is_required: bool, align: str = "off") -> None:
        self._file = file
        self._is_required, self._align = is_required, align
        self._clips: dict[str, MotionLocator | None] = {}  # None for one that motion can't help
        self._names: dict[str, list[str]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # of the frames of a clip that motion is sure of
        self._unread = 0

    def keep(self, picture: Picture, name: str, clip: str) -> None:
        """Add a picture or frame; a clip is a video or a folder."""
        if clip not in self._clips:
            self._clips[clip], self._names[clip] = MotionLocator(self._file), []
        self._names[clip].append(name)
        self._sizes[clip] = picture.size
        locator = self._clips[clip]
        if locator is not None:
            locator.add(picture.image, picture.size)
            # of a video all frames are read in any case
            is_tried = len(locator) == _TRIED and clip == clip_of_picture(name)
            if is_tried and not self._is_required and not _is_promising(locator.locate()):
                self._clips[clip] = None

    def wants(self, picture: str) -> bool:
        """Return whether to :meth:`keep` a picture of this name; count it if motion can't help in its folder."""
        is_open = self._clips.get(clip_of_picture(picture), self._clips) is not None
        self._unread += not is_open
        return is_open

    @staticmethod
    def reduction(width: int, height: int) -> float:
        """Return by how much a picture may be reduced while decoding, see `open_reduced`."""
        return max(width, height) / LONGER_SIDE

    def look(self, check: Callable[[], None] = lambda: None) -> Motion:
        """Find the thing in all frames that were kept; ``check`` is called for each clip."""
        motion = Motion(count=self._unread)
        for clip, names in self._names.items():
            check()
            locator = self._clips[clip]
            motion.count += len(names)
            if locator is None:
                motion.reasons.append(f"{clip}: {NOT_ONE_CAMERA}")
                continue
            track = locator.locate(headings=self._align != "off")
            motion.sure += len(names) * track.sure
            if not track.sure:
                motion.reasons.append(f"{clip}: {track.reason}")
            motion.boxes.update(zip(names, boxes_of_track(track), strict=True))
        return motion

    def locate(self, sent: Locations | None = None) -> Locations:
        """Return the boxes of all frames, or whole pictures where motion is not sure of most.

        Args:
            sent: boxes of some frames; motion fills the others if it is sure of most, or required.

        Raises TooFewPictures if motion is required and nothing moves, or if pictures are to be aligned and motion is
        not sure; with boxes that were sent, BadBoxes if pictures are to be aligned and no heading is known, or there
        is no box and motion finds none.
        """
        motion = self.look()
        side, reasons = motion.side_px, motion.reasons
        if sent:
            filled = self._fill(sent, motion)
            if not filled.has_boxes:
                raise BadBoxes(
                    "there is no box in the boxes, and motion does not show surely where the thing is "
                    f"({motion.note or 'nothing moves'}); send boxes, or set locate to motion to use it all the same"
                )
            if self._align == "heading" and not filled.knows_heading:
                raise BadBoxes(
                    "align is heading, no box has an angle, and motion shows no heading "
                    f"({motion.note or 'no evidence of which end is the head'}); send boxes with angles, set locate to "
                    "motion to use it where it is not sure, or set align to off"
                )
            return filled
        if self._is_required and side is None:
            raise TooFewPictures(
                f"locate is motion, and nothing was found ({'; '.join(reasons[:3])}); send boxes, or set locate to off"
            )
        if side is None or (not self._is_required and not motion.is_sure):
            if self._align == "heading":
                raise TooFewPictures(
                    f"align is heading, and motion does not show surely where the thing is ({'; '.join(reasons[:3])}); "
                    "send boxes with angles, set locate to motion to use it all the same, or set align to off"
                )
            return Locations()
        found = motion.found()
        summary = {"by": "motion", "side_px": side, "found": len(found), "note": motion.note}
        return Locations(motion.boxes, _NOTHING_FOUND, summary)

    def _fill(self, sent: Locations, motion: Motion) -> Locations:
        """Return the boxes that were sent, with those of motion for the frames that they do not name."""
        if not (self._is_required or motion.is_sure):
            if sent.names_all:
                return sent
            why = f"pictures without a box are left out, as motion is not sure ({motion.note or 'nothing was read'})"
            return replace(sent, summary={"by": "boxes", "note": why})
        boxes: dict[str, FoundBox | None] = {}
        for clip, names in self._names.items():
            found = [motion.boxes.get(name) for name in names]
            own = {
                row: sent.find_all(name, self._sizes[clip])
                for row, name in enumerate(names)
                if sent.entries.get(name) is not None
            }
            boxes.update(zip(names, correct_track(found, own), strict=True))
        filled = [name for name, box in boxes.items() if box and sent.entries.get(name) is None]
        missing = f"{sent.missing}, and {_NOTHING_FOUND}"
        sizes = {name: self._sizes[clip] for clip, names in self._names.items() for name in names}
        if not filled:  # only headings are added
            return replace(sent, boxes=boxes, missing=missing, sizes=sizes)
        corrected = sum(boxes[name] != motion.boxes[name] for name in motion.found() if name in boxes)
        summary = {
            "by": "boxes and motion",
            "side_px": motion.side_px,
            "sent": sum(entry is not None for entry in sent.entries.values()),
            "found": len(filled),
            "corrected": corrected,
            "note": motion.note,
        }
        return replace(sent, boxes=boxes, missing=missing, summary=summary, sizes=sizes)


def fills_frames(locate: str, file: BoxFile) -> bool:
    """Return whether motion fills the frames that a file of boxes does not name, and adds headings.

    Raises BadBoxes if it is required to, and the boxes are of numbered animals; or if it does not, and there is no box.
    """
    if locate == "motion" and file.has_animals:
        raise BadBoxes(
            "locate is motion, and the boxes number animals: motion finds one thing, and not which of them it is; "
            "leave locate out, or the column animal"
        )
    fills = locate == "motion" or (locate == "auto" and not file.is_complete)
    if not (fills or file.has_boxes):
        raise BadBoxes(
            f"the boxes name {len(file.boxes)} pictures or frames in which nothing is, and have no box; send boxes of "
            "the others, or set locate to motion to find it there before a fixed camera"
        )
    return fills


def _is_promising(track: Track) -> bool:
    """Return whether more pictures of a folder may show one thing before a fixed camera: it may sleep at first."""
    return track.sure or track.reason in (NOTHING_MOVES, NOTHING_LEAVES)


def is_aligned_by(setting: str, boxes: Sequence[FoundBox]) -> bool:
    """Return whether to rotate pictures so that the thing faces up, by the setting of training."""
    if setting != "auto":
        return setting == "heading"
    if not boxes:
        return False
    places = np.array([box.box for box in boxes])
    centres = (places[:, :2] + places[:, 2:] / 2) / np.median(places[:, 2:].max(axis=1))
    return is_seen_from_above([box.angle for box in boxes], [box.angle_confidence for box in boxes], centres)


def boxes_of_track(track: Track, animal: int | None = None) -> list[FoundBox | None]:
    """Return the box of each frame, with its angle if headings were found; None where nothing was found."""
    count = len(track.boxes)
    more = track.angles or (None,) * count, track.angle_confidence or (None,) * count
    return [
        box and FoundBox(box, confidence, angle, angle_confidence, animal)
        for box, confidence, angle, angle_confidence in zip(track.boxes, track.confidence, *more, strict=True)
    ]


def clip_of_picture(name: str) -> str:
    """Return the clip of a picture in an upload: its folder, or "." for a picture outside of any folder."""
    return str(PurePosixPath(name.replace("\\", "/")).parent)
