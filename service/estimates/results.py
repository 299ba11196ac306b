"""The outcomes of a request's pictures, collected for a response in any format."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.media.boxes import FoundBox
from service.contract.media.videos import frame_name
from service.versions.reader import Version

from .boxes import PictureBoxes
from .pictures import Answer

# names how many pictures lack a pose, for formats that have no place for errors
ERRORS_HEADER = "PPL-Errors"
_MAX_DETAIL = 300
STAGES = ("decode", "queue", "model")


@dataclass(frozen=True)
class Outcome:
    """The poses of one picture, or its error.

    Attributes:
        index: the picture's index in the request.
        poses: one for each box, without links.
        error: a problem document.
        timing_ms: decode, queue, model.
    """

    index: int
    poses: list[Answer] = field(default_factory=list)
    error: dict[str, Any] | None = None
    timing_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def to_line(self) -> bytes:
        """Return the outcome as one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class Results:
    """All outcomes of a request.

    Attributes:
        version: that found the poses.
        names: file names of the pictures, if known, or of the video.
        boxes: boxes of the pictures or frames.
        outcomes: in the order of pictures; may be read from a file at each iteration.
        timing_ms: decode, queue, model, total.
        errors: problems of the pictures without a pose; None if such a picture ends the request.
        frames: of a video: the number of the frame by index.
        landmarks: names of the landmarks, if a set was named.
        outliers: of a smoothed video: frames in which keypoints jump.
    """

    version: Version
    names: Sequence[str]
    boxes: Sequence[PictureBoxes]
    outcomes: Iterable[Outcome]
    timing_ms: dict[str, float]
    errors: list[dict[str, Any]] | None = None
    frames: Sequence[int] | None = None
    landmarks: Sequence[str] = ()
    outliers: list[dict[str, Any]] | None = None

    @classmethod
    def collect(
        cls,
        outcomes: Iterable[Outcome],
        version: Version,
        names: Sequence[str],
        boxes: Sequence[PictureBoxes],
        started: float,
        *,
        video: bool = False,
        fail_fast: bool = False,
        landmarks: Sequence[str] = (),
        outliers: list[dict[str, Any]] | None = None,
    ) -> Results:
        """Sum up the outcomes of a request.

        Args:
            outcomes: in the order of pictures; iterated more than once.
            names, boxes: of the pictures; of a video, one of each.
            started: `time.perf_counter` at the start of the request.
            fail_fast: whether an error ends the request.
        """
        stages_ms = np.zeros(len(STAGES))
        errors: list[dict[str, Any]] = []
        located: dict[int, PictureBoxes] = {}
        frames = array("q")  # number of the video's frame by index
        for outcome in outcomes:
            stages_ms += outcome.timing_ms
            if outcome.error:
                errors.append(outcome.error)
            found = outcome.error or outcome.poses[0]
            if any("region" in pose for pose in outcome.poses):
                located[outcome.index] = _boxes_of(outcome.poses)
            if "frame" in found:  # missing if the error ends the video early
                frames.append(found["frame"])
        if video:
            boxes = [boxes[0]] * len(frames)
        if located:
            boxes = [located.get(index, own) for index, own in enumerate(boxes)]
        timing_ms = describe_timing(stages_ms, started)
        found_frames, problems = frames if video else None, None if fail_fast else errors
        return cls(version, names, boxes, outcomes, timing_ms, problems, found_frames, landmarks, outliers)

    def poses(self) -> Iterator[Answer]:
        """Yield the poses in the order of pictures and boxes."""
        for outcome in self.outcomes:
            yield from outcome.poses

    def point_names(self) -> list[str]:
        """Return the names of the keypoints and landmarks; a landmark with the name of a keypoint says what it is."""
        names = list(self.version.keypoint_names)
        return names + [f"{name}_landmark" if name in names else name for name in self.landmarks]

    def points(self, pose: Answer) -> list[dict[str, Any]]:
        """Return x, y and score of a pose's keypoints and landmarks, in the order of their names; None without one."""
        missing = [dict.fromkeys(("x", "y", "score"))] * len(self.landmarks)
        return [*final_keypoints(pose), *(pose.get("landmarks") or missing)]

    def name(self, index: int) -> str:
        """Return the name of a picture's file or of a frame, or a substitute."""
        if self.frames is not None:
            return frame_name(self.names[0] or "video", self.frames[index])
        name = self.names[index] if index < len(self.names) else ""
        return name or f"image-{index}"

    def errors_header(self) -> dict[str, str]:
        """Return ERRORS_HEADER with the number of errors and the first, as ASCII JSON; empty without errors."""
        if not self.errors:
            return {}
        first = {name: self.errors[0][name] for name in ("index", "frame", "code", "detail") if name in self.errors[0]}
        first["detail"] = first["detail"][:_MAX_DETAIL]
        return {ERRORS_HEADER: json.dumps({"count": len(self.errors), "first": first})}


def _boxes_of(poses: list[Answer]) -> PictureBoxes:
    """Return the boxes by their number; None for one that is missing, or whose pose is interpolated."""
    regions = {
        pose.get("box", 0): FoundBox.of_region(pose["region"]).box if "region" in pose else None for pose in poses
    }
    return PictureBoxes(tuple(map(regions.get, range(max(regions) + 1))), numbered="box" in poses[0])


def final_keypoints(pose: Answer) -> list[dict[str, Any]]:
    """Return x, y and score of a pose's keypoints, smoothed if they were; all None where a gap stays open."""
    found: list[dict[str, Any]] = pose["keypoints"]
    if "smoothed" not in pose:
        return found
    scores = [point["score"] for point in found] or [0.0] * len(pose["smoothed"])
    missing = dict.fromkeys(("x", "y", "score"))
    return [
        {**point, "score": score} if point else missing for point, score in zip(pose["smoothed"], scores, strict=True)
    ]


def describe_timing(stages_ms: NDArray[np.float64], started: float) -> dict[str, float]:
    """Return the time of each stage and in total, as in a response."""
    total_ms = 1e3 * (time.perf_counter() - started)
    elapsed_ms = zip((*STAGES, "total"), (*stages_ms.tolist(), total_ms), strict=True)
    return {name: round(value, 2) for name, value in elapsed_ms}


class StoredOutcomes:
    """The outcomes in a file of :meth:`Outcome.to_line`, in the order of pictures; read at each iteration.

    Only their offsets are in memory: there may be a hundred thousand outcomes of many kilobytes each.

    Args:
        path: path of the file, which may be missing; truncated lines are skipped.

    Attributes:
        failed: number of outcomes with an error.
        end: offset of the end of the last whole line.
    """

    def __init__(self, path: Path) -> None:
        self.failed = self.end = 0
        self.path = path
        self._offsets = array("q")  # by index, -1 without one
        self._count = 0
        with suppress(FileNotFoundError), path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                with suppress(ValueError):  # truncated when a process was killed; another one wrote on after it
                    outcome = json.loads(line)
                    if (index := outcome["index"]) not in self:
                        self._offsets.extend(repeat(-1, index + 1 - len(self._offsets)))
                        self._offsets[index] = self.end
                        self._count += 1
                        self.failed += outcome["error"] is not None
                self.end += len(line)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index < len(self._offsets) and self._offsets[index] >= 0

    def __iter__(self) -> Iterator[Outcome]:
        if not self._offsets:
            return
        with self.path.open("rb") as file:
            for offset in self._offsets:
                if offset < 0:
                    continue
                file.seek(offset)
                line = json.loads(file.readline())
                yield Outcome(line["index"], line["poses"], line["error"], tuple(line["timing_ms"]))
