"""Check labels and boxes against the pictures of an upload before a job or dataset is accepted. Blocking.

    python -m service.training.label_check REQUEST

The worker matches them again, with the frames of videos and all pictures that can be read. Large labels take seconds
and up to a gigabyte to read, so they are checked in another process. REQUEST is the JSON of :func:`check_labels`'
arguments; the exit status is ``_REFUSED`` for labels that can't be used, with the reason on standard error.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from model.scoring.label_files import read_labels
from model.scoring.label_fitting import CameSize, fit_labels
from model.scoring.label_matching import hold_out, match_crops
from model.scoring.labels import Labels, LabelsError
from service.contract.errors import BadBoxes, BadLabels, BadPicture
from service.contract.media.archives import ArchiveLimits, detect_kind, iter_members
from service.contract.media.boxes import parse_box_file
from service.contract.media.locating import Locations
from service.contract.media.pictures import read_size
from service.contract.media.zip_names import HINT

_MAX_READ = 256  # pictures whose size is read
_APART_BYTES = 8 * 2**20  # larger labels are checked in another process
_APART_TIMEOUT_S = 120.0
_REFUSED = 3
_FRAME = re.compile(r"#\d+$")


def check_labels(
    labels: Path,
    pictures: Path,
    limits: ArchiveLimits,
    mode: str,
    video_name: str | None = None,
    labels_fit: str = "exact",
    boxes: Path | None = None,
) -> None:
    """Check that labels can be read, and fit pictures in an archive or folder.

    Of many labelled pictures, some evenly spaced ones are read for their size.

    Args:
        mode: stills, or clips, whose split depends on the frames taken.
        video_name: of an upload that is one video.
        labels_fit: scale fits labels that state another size.
        boxes: a file that was checked; it need not exist.

    Raises:
        BadLabels: they can't be read, match no picture, are of pictures of another size, or leave none to train on or
            to score.
    """
    if labels.stat().st_size > _APART_BYTES:
        _check_apart(labels, pictures, limits, mode, video_name, labels_fit, boxes)
    else:
        _check(labels, pictures, limits, mode, video_name, labels_fit, boxes)


def check_boxes(boxes: Path, pictures: Path, limits: ArchiveLimits, video_name: str | None = None) -> None:
    """Raise BadBoxes if a file of boxes can't be read, or fits no picture or video in an archive or folder."""
    names, videos = _list_names(pictures, limits, video_name)
    parse_box_file(boxes.read_bytes()).check_files([*names, *videos])


def _check_apart(labels: Path, pictures: Path, limits: ArchiveLimits, *more: str | Path | None) -> None:
    request = json.dumps([str(labels), str(pictures), asdict(limits), *more], default=str)
    command = [sys.executable, "-P", "-m", __spec__.name, request]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_APART_TIMEOUT_S)  # noqa: S603 - a module of ours
    except subprocess.TimeoutExpired:
        raise BadLabels(f"the labels took more than {_APART_TIMEOUT_S:g} s to read; send fewer of them") from None
    if done.returncode == _REFUSED:
        raise BadLabels(done.stderr.decode(errors="replace").strip())
    if done.returncode:
        raise BadLabels("the labels can't be used: they take too much memory to read; send fewer of them")


def _check(
    labels: Path,
    pictures: Path,
    limits: ArchiveLimits,
    mode: str,
    video_name: str | None,
    labels_fit: str,
    boxes: Path | None,
) -> None:
    try:
        found = read_labels(labels)
        found.check_visible()
        names, videos = _list_names(pictures, limits, video_name)
        media = [*names, *videos]
        try:
            if videos or mode == "clips" or any(map(_FRAME.search, found.names)):
                _name_files(found).match(media)  # the worker knows which frames are taken
                return
            rows = found.match(names)
        except LabelsError as error:
            hint = "" if all(map(str.isascii, media)) else f"; {HINT}"
            raise LabelsError(f"{error}{hint}") from error
        labelled = np.flatnonzero(rows >= 0)
        if boxes and boxes.exists():
            with suppress(BadBoxes):  # the worker names boxes of other pictures
                match_crops(found, names, Locations.of_file(parse_box_file(boxes.read_bytes()), names).with_several())
        hold_out(found.rows(rows[labelled]), [names[index] for index in labelled.tolist()])
        row_of = {names[index]: int(rows[index]) for index in labelled.tolist()}
        _check_sizes(found, row_of, pictures, limits, labels_fit)
    except LabelsError as error:
        raise BadLabels(f"the labels can't be used: {error}") from error


def _list_names(pictures: Path, limits: ArchiveLimits, video_name: str | None) -> tuple[list[str], list[str]]:
    """Return the names of the pictures and of the videos."""
    names: list[str] = []
    videos: list[str] = []
    with closing(iter_members(pictures, detect_kind(pictures), limits)) as members:
        for member in members:
            if member.is_video:
                videos.append(video_name or member.name if member.bare_video else member.name)
            elif member.is_picture:
                names.append(member.name)
    return names, videos


def _name_files(labels: Labels) -> Labels:
    """Return labels without keypoints, named by the files that the labelled pictures and frames are in."""
    files = tuple(dict.fromkeys(_FRAME.sub("", name) for name in labels.names))
    return Labels(files, (), np.zeros((len(files), 0, 2)), np.zeros((len(files), 0), dtype=np.uint8))


def _check_sizes(
    labels: Labels, row_of: dict[str, int], pictures: Path, limits: ArchiveLimits, labels_fit: str
) -> None:
    """Raise LabelsError if labels are of pictures of another size, by those of `row_of` that are read."""
    chosen = _space(list(row_of))
    sizes: dict[int, CameSize] = {}
    with closing(iter_members(pictures, detect_kind(pictures), limits)) as members:
        for member in members:
            if member.name in chosen and member.size <= limits.max_picture_bytes:
                with suppress(BadPicture, OSError, EOFError, ValueError):  # the worker names files that can't be read
                    sizes[row_of[member.name]] = CameSize(*read_size(member.read()))
                    if len(sizes) == len(chosen):
                        break
    if sizes:
        chosen_labels = labels.rows(list(sizes))
        if labels_fit == "scale":
            chosen_labels = fit_labels(chosen_labels, {labels.names[row]: size for row, size in sizes.items()})
        chosen_labels.with_sizes(np.array([size[:2] for size in sizes.values()], dtype=np.int64))


def _space(names: Sequence[str]) -> frozenset[str]:
    places = np.linspace(0, len(names) - 1, min(len(names), _MAX_READ)).round().astype(int)
    return frozenset(names[place] for place in places.tolist())


def main() -> int:
    """Check labels as the command line says."""
    labels, pictures, limits, mode, video_name, labels_fit, boxes = json.loads(sys.argv[1])
    boxes = boxes and Path(boxes)
    try:
        _check(Path(labels), Path(pictures), ArchiveLimits(**limits), mode, video_name, labels_fit, boxes)
    except BadLabels as error:
        print(error.detail, file=sys.stderr)
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
