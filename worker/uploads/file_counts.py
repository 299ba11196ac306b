"""What became of an upload's files, as its job tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .square_files import LEAST_FRAMES

_NAMED = 20  # skipped files named in the job
_LONGEST_NAME = 200


@dataclass
class Tally:
    """What became of an upload's pictures and of its videos' frames.

    Attributes:
        images: squares to train on.
        skipped: files that can't be read or only in part, and clips left out.
        named: the first of these, with the reason.
        mode: "stills" or "clips", what the upload is taken for; None until the first file.
        clips: how many, once all are read.
    """

    images: int = 0
    skipped: int = 0
    named: list[dict[str, str]] = field(default_factory=list)
    mode: str | None = None
    clips: int = 0
    _told: set[str] = field(default_factory=set)

    def skip(self, name: str, reason: str) -> None:
        """Count a file that can't be read, and keep the first names with the reason."""
        self.skipped += 1
        self._told.add(name)
        if len(self.named) < _NAMED:
            self.named.append({"name": shown(name), "reason": reason})

    def leave_out(self, clips: dict[str, int]) -> None:
        """Take clips of too few frames off the images; one that was named for its damage is not named again."""
        for clip, frames in clips.items():
            self.images -= frames
            if clip not in self._told:
                self.skip(clip, f"a clip of {frames} readable frame; at least {LEAST_FRAMES} are needed")

    def metrics(self) -> dict[str, Any]:
        """As the job shows it."""
        return {
            "images": self.images,
            "skipped": self.skipped,
            "skipped_files": list(self.named),
            "mode": self.mode,
            "clips": self.clips,
        }


def shown(name: str) -> str:
    """A name short enough to be shown."""
    return as_text(name[-_LONGEST_NAME:])


def as_text(name: str) -> str:
    """A member's name as JSON can carry it: some hold bytes that are no text."""
    return name.encode("utf-8", "replace").decode("utf-8")
