"""Find the thing that moves before a fixed camera in a few frames of a dataset; a training searches more of them."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import BinaryIO

import numpy as np
from PIL import Image

from service.contract.datasets.dataset import MotionBox, MotionFound
from service.contract.media.locating import Motion, MotionFinder
from service.contract.media.motion import LONGER_SIDE, shrink
from service.contract.media.pictures import Picture

from .contact_sheet import COLUMNS

# an odd multiple of those shown, which are then among them; what it finds agrees with 200 frames within a tenth of the
# side on the videos tried, while 24 may fall on the same few places of a thing that walks in rounds
FRAMES_PER_VIDEO = 5 * COLUMNS
MOST_CLIPS = 12  # the first ones: as many have frames that are named
MOST_PICTURES = 200  # and those of the contact sheet
_MAX_NOTE = 500


class MotionSearch:
    """A collector of frames of a dataset's first clips, which finds the thing that moves in them.

    Args:
        file: a temporary one, for small copies of the frames.
        pictures: number of the dataset's pictures, not videos.
    """

    def __init__(self, file: BinaryIO, pictures: int) -> None:
        self._finder = MotionFinder(file, is_required=False, align="auto")
        self._step = -(-pictures // MOST_PICTURES) or 1
        self._clips: set[str] = set()
        self._pictures: set[str] = set()
        self._read = self._count = 0  # pictures read; frames and pictures looked at

    def takes(self, clip: str) -> bool:
        """Return whether this clip's frames are searched."""
        return clip in self._clips or len(self._clips) < MOST_CLIPS

    def add_picture(self, picture: Picture, name: str, clip: str, *, is_drawn: bool) -> None:
        """Add the dataset's next picture if it is one of those to search, the same as on the contact sheet."""
        self._read += 1
        if (is_drawn or (self._read - 1) % self._step == 0) and self.takes(clip):
            self._clips.add(clip)
            self._count += 1
            if self._finder.wants(name):
                self._pictures.add(name)
                self._finder.keep(picture, name, clip)

    def add_frame(self, picture: Picture, name: str, clip: str) -> Picture:
        """Add a frame of a video; return its small copy."""
        pixels = shrink(np.asarray(picture.image), picture.size, LONGER_SIDE)
        small = Picture(Image.fromarray(pixels), *picture.size)
        self._clips.add(clip)
        self._count += 1
        self._finder.keep(small, name, clip)
        return small

    def finish(self, shown: Container[str], check: Callable[[], None]) -> tuple[MotionFound, Motion]:
        """Find what moves. ``shown`` are the names of frames whose boxes are listed, beside those of pictures."""
        motion = self._finder.look(check)
        found = MotionFound(sure=motion.is_sure, clips=len(self._clips), frames=self._count)
        if motion.note:
            found.note = motion.note[:_MAX_NOTE]
        if found.sure:
            found.found, found.side_px = len(motion.found()), motion.side_px
            found.from_above = motion.is_from_above
            found.boxes = [
                MotionBox.model_validate({"image": name, **each.to_region()})
                for name, each in motion.found().items()
                if name in shown or name in self._pictures
            ]
        return found, motion
