"""Warn of boxes and labels that a training does not use, as their pictures or frames are not among those it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from model.scoring.label_matching import LabelledPictures
from model.scoring.labels import list_names
from service.contract.jobs.warnings import PictureWarning, WarningCode
from service.contract.media.locating import Locations
from service.contract.media.zip_names import replace_surrogates

_FRAME = re.compile(r"#\d+$")


def find_unused_boxes(locations: Locations, frames_per_clip: int) -> list[PictureWarning]:
    """Return a warning of boxes that are not used."""
    names = locations.list_lost()
    if not names:
        return []
    found = f"the boxes name {len(names)} pictures or frames that the training does not take"
    advice = "see which boxes the job used, correct those, or raise frames_per_clip"
    return [_warn(WarningCode.UNUSED_BOXES, found, names, frames_per_clip, advice)]


def find_unused_labels(labelled: LabelledPictures | None, frames_per_clip: int) -> list[PictureWarning]:
    """Return a warning of labels that are not used."""
    if labelled is None or not labelled.without_picture:
        return []
    total = labelled.without_picture + len(labelled.pictures)
    found = f"the training does not take {labelled.without_picture} of {total} labelled pictures or frames"
    advice = "label frames that are taken, or raise frames_per_clip"
    return [_warn(WarningCode.UNUSED_LABELS, found, labelled.others, frames_per_clip, advice)]


def _warn(code: WarningCode, found: str, names: Sequence[str], frames_per_clip: int, advice: str) -> PictureWarning:
    hint = ""
    if any(map(_FRAME.search, names)):
        hint = f". Of a video, {frames_per_clip} evenly spaced frames are taken: {advice}"
    listed = f" ({list_names(names)})" if names else ""
    return PictureWarning(code=code, detail=replace_surrogates(f"{found}{listed}{hint}"))
