"""Find where the thing is in the frames of a fixed camera, a video or pictures in their order. Blocking."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from PIL import Image

from service.contract.errors import PPLError
from service.contract.media.animals import AnimalLocator
from service.contract.media.boxes import FoundBox
from service.contract.media.corrections import correct_track, take_heading
from service.contract.media.locating import boxes_of_track
from service.contract.media.motion import LONGER_SIDE, Track
from service.contract.media.pictures import PictureLimits, open_reduced

from .boxes import NOTHING, PictureBoxes
from .pictures import Upload, hold_pixels


def locate_frames(
    frames: Iterable[tuple[int, Image.Image, tuple[int, int]]],
    *,
    is_required: bool,
    is_aligned: bool = False,
    animals: int = 1,
    sent: Mapping[int, PictureBoxes] | None = None,
) -> Mapping[int, PictureBoxes] | None:
    """Return the boxes of each numbered frame; those that were sent if motion is not sure, unless it is required.

    Args:
        frames: number, image, possibly reduced, and full size in pixels.
        is_aligned: whether to find the thing's heading, too.
        animals: the most that there are; of several, each box has the number of its animal.
        sent: boxes of some frames, which hold there; motion fills the others, see :func:`correct_track`.
    """
    sizes = list[tuple[int, int]]()
    with tempfile.TemporaryFile() as file:
        locator, numbers = AnimalLocator(file), []
        for number, image, size in frames:
            numbers.append(number)
            sizes.append(size)
            locator.add(image, size)
        tracks = locator.locate_all(animals, headings=is_aligned)
    if not (is_required or tracks[0].sure):
        return sent
    if sent is not None:
        if not _lacks(sent, numbers, sizes, angles=is_aligned):
            return sent
        return _fill(sent, tracks[0], numbers, sizes)
    boxes = [boxes_of_track(track, None if animals == 1 else animal) for animal, track in enumerate(tracks)]
    return {
        number: PictureBoxes.located(found) if (found := [box for box in of_frame if box]) else NOTHING
        for number, *of_frame in zip(numbers, *boxes, strict=True)
    }


def _lacks(
    sent: Mapping[int, PictureBoxes], numbers: Sequence[int], sizes: Sequence[tuple[int, int]], *, angles: bool
) -> bool:
    """Return whether frames lack boxes or, if ``angles``, headings."""
    if not all(number in sent for number in numbers):
        return True
    regions = ((sent[number].regions, size) for number, size in zip(numbers, sizes, strict=True))
    return angles and any(box.angle is None for of, size in regions if of for box in of(size))


def _fill(
    sent: Mapping[int, PictureBoxes], track: Track, numbers: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> dict[int, PictureBoxes]:
    found, own = boxes_of_track(track), dict[int, list[FoundBox]]()
    for row, (number, size) in enumerate(zip(numbers, sizes, strict=True)):
        if number in sent and (regions := sent[number].regions):
            own[row] = [replace(each, by="boxes") for each in take_heading([*regions(size)], found[row])]
    boxes = correct_track(found, own)
    return {
        number: PictureBoxes.located(own.get(row, [replace(each, by="motion")] if (each := boxes[row]) else []))
        for row, number in enumerate(numbers)
    }


def locate_pictures(uploads: Sequence[Upload], limits: PictureLimits, is_aligned: bool = False) -> list[Upload]:
    """Return the pictures with the box of what moves in each; one that can't be read stays as it is.

    Boxes of some of them that came in a file hold there.
    """

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

    boxes = {number: upload.boxes for number, upload in enumerate(uploads)}
    sent = {number: each for number, each in boxes.items() if each.regions and each is not NOTHING}
    found = locate_frames(read(), is_required=True, is_aligned=is_aligned, sent=sent or None) or {}
    return [replace(upload, boxes=found.get(number, upload.boxes)) for number, upload in enumerate(uploads)]
