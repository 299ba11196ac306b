"""Find where the thing is in the frames of a fixed camera, a video or pictures in their order. Blocking."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from PIL import Image

from service.contract.errors import PPLError
from service.contract.media.animals import AnimalLocator
from service.contract.media.locating import boxes_of_track
from service.contract.media.motion import LONGER_SIDE
from service.contract.media.pictures import PictureLimits, open_reduced

from .pictures import NOTHING, PictureBoxes, Upload, hold_pixels


def locate_frames(
    frames: Iterable[tuple[int, Image.Image, tuple[int, int]]],
    *,
    is_required: bool,
    is_aligned: bool = False,
    animals: int = 1,
) -> dict[int, PictureBoxes] | None:
    """Return the boxes of each numbered frame; None if motion is not sure, unless it is required.

    Args:
        frames: number, image, possibly reduced, and full size in pixels.
        is_aligned: whether to find the thing's heading, too.
        animals: the most that there are; of several, each box has the number of its animal.
    """
    with tempfile.TemporaryFile() as file:
        locator, numbers = AnimalLocator(file), []
        for number, image, size in frames:
            numbers.append(number)
            locator.add(image, size)
        tracks = locator.locate_all(animals, headings=is_aligned)
    if not (is_required or tracks[0].sure):
        return None
    boxes = [boxes_of_track(track, None if animals == 1 else animal) for animal, track in enumerate(tracks)]
    return {
        number: PictureBoxes.located(found) if (found := [box for box in of_frame if box]) else NOTHING
        for number, *of_frame in zip(numbers, *boxes, strict=True)
    }


def locate_pictures(uploads: Sequence[Upload], limits: PictureLimits, is_aligned: bool = False) -> list[Upload]:
    """Return the pictures with the box of what moves in each; one that can't be read stays as it is."""

    def read() -> Iterator[tuple[int, Image.Image, tuple[int, int]]]:
        for number, upload in enumerate(uploads):
            with ExitStack() as held:
                try:
                    picture = open_reduced(
                        upload.read(),
                        lambda width, height: max(width, height) / LONGER_SIDE,
                        limits,
                        lambda pixels: held.enter_context(hold_pixels(pixels, limits)),
                    )
                except PPLError:  # reported when the picture is estimated
                    continue
                yield number, picture.image, picture.size

    found = locate_frames(read(), is_required=True, is_aligned=is_aligned) or {}
    return [replace(upload, boxes=found.get(number, upload.boxes)) for number, upload in enumerate(uploads)]
