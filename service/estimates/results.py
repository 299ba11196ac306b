"""What came of a request's pictures, whatever the format it is told in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.versions.reader import Version

from .boxes import PictureBoxes
from .pictures import Answer


@dataclass(frozen=True)
class Outcome:
    """What came of one picture: its poses, or why there are none.

    Attributes:
        index: of the picture.
        poses: one for each of its boxes, without links.
        error: a problem document.
        timing_ms: decode, queue, model.
    """

    index: int
    poses: list[Answer] = field(default_factory=list)
    error: dict[str, Any] | None = None
    timing_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Results:
    """All that came of a request.

    Attributes:
        version: that found the poses.
        names: of the pictures' files, as far as they are known.
        boxes: of the pictures.
        outcomes: in the order of pictures and boxes; may be read from a file each time they are gone through.
        timing_ms: decode, queue, model, total.
        errors: why pictures gave no pose; None where the first such would have ended the request.
    """

    version: Version
    names: Sequence[str]
    boxes: Sequence[PictureBoxes]
    outcomes: Iterable[Outcome]
    timing_ms: dict[str, float]
    errors: Sequence[dict[str, Any]] | None = None

    def poses(self) -> Iterator[Answer]:
        """In the order of pictures and boxes."""
        for outcome in self.outcomes:
            yield from outcome.poses

    def name(self, index: int) -> str:
        """How a table names a picture: by its file, where that has a name."""
        given = self.names[index] if index < len(self.names) else ""
        return given or f"image-{index}"
