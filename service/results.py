"""What came of a request's pictures, whatever the format it is told in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .boxes import PictureBoxes
from .images import Answer
from .versions import Version


@dataclass(frozen=True)
class Outcome:
    """What came of one picture: its poses, or why there are none.

    Attributes:
        index: of the picture; None for what is wrong with a video as a whole.
        poses: one for each of its boxes, without links.
        error: a problem document.
        timing_ms: decode, queue, model.
    """

    index: int | None
    poses: list[Answer] = field(default_factory=list)
    error: dict[str, Any] | None = None
    timing_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Results:
    """All that came of a request.

    Attributes:
        version: that found the poses.
        names: of the pictures' files, as far as they are known.
        boxes: of the pictures; one entry stands for all frames of a video.
        outcomes: in any order.
        timing_ms: decode, queue, model, total.
        video: name of the file whose frames these are; None for pictures.
    """

    version: Version
    names: Sequence[str]
    boxes: Sequence[PictureBoxes]
    outcomes: Sequence[Outcome]
    timing_ms: dict[str, float]
    video: str | None = None

    def poses(self) -> list[Answer]:
        """In the order of pictures and boxes."""
        poses = [pose for outcome in self.outcomes for pose in outcome.poses]
        return sorted(poses, key=lambda pose: (pose["index"], pose.get("box", 0)))

    def errors(self) -> list[dict[str, Any]]:
        """Problem documents of what went wrong, in the order of pictures; that of a video as a whole comes last."""
        failed = [outcome for outcome in self.outcomes if outcome.error]
        failed.sort(key=lambda outcome: (outcome.index is None, outcome.index or 0))
        return [{"index": outcome.index, **(outcome.error or {})} for outcome in failed]

    def name(self, index: int) -> str:
        """How a table names a picture: by its file, where that has a name."""
        given = self.names[index] if index < len(self.names) else ""
        return given or f"image-{index}"

    def boxes_of(self, index: int) -> PictureBoxes:
        """Of one picture."""
        return self.boxes[min(index, len(self.boxes) - 1)]


def summed(outcomes: Sequence[Outcome], total_ms: float) -> dict[str, float]:
    """Where the time went: but for the total sums over pictures, which were under way side by side."""
    sums = (sum(outcome.timing_ms[part] for outcome in outcomes) for part in range(3))
    return dict(zip(("decode", "queue", "model", "total"), (*sums, total_ms), strict=True))
