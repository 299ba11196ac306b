"""Fit landmarks: find the poses of labelled pictures, and map their keypoints to the user's own points."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
from fastapi import Request

from model.scoring.label_fitting import CHOICES
from service.contract.errors import BadBoxes, BadLabels, NameTaken, NoImages, TooManyImages
from service.contract.versions.landmarks import LandmarkSet, check_set_name
from service.http.headers import fingerprint
from service.http.multipart import FileField, check_fields
from service.http.problems import BadField
from service.runtime.settings import Settings
from service.versions.landmarks import MAX_FIT_LABELS_BYTES, FittedPicture, fit_set, read_labelled
from service.versions.reader import Versions
from service.versions.schemas import FittedLandmarks

from .boxes import parse_boxes
from .estimator import Estimator, Pipeline
from .pictures import Upload
from .request import MAX_BOXES_BYTES, Query, move_boxes, read_form_within

BODY_S = 600.0  # time for a body to arrive


@dataclass(frozen=True)
class LandmarkRequest:
    """A request to fit landmarks.

    Attributes:
        name: name of the set.
        version: None for the active one.
        labels: CSV or JSON.
        labels_fit: exact, or scale for labels that state another size of their pictures.
        content: 64 hex digits that identify all that was sent.
    """

    name: str
    version: str | None
    labels: bytes
    uploads: list[Upload]
    labels_fit: str = "exact"
    content: str = ""

    @classmethod
    async def read(cls, request: Request, settings: Settings) -> LandmarkRequest:
        """Read and parse the form.

        Raises:
            BadField, BadBoxes, BadLandmarks, BadLabels, NoImages, TooManyImages, and the errors of
            :func:`read_form_within`.
        """
        limit = settings.landmarks_max_images
        too_many = f"more than {limit} pictures; a request may have {limit}"
        fields = {
            "images": FileField(limit, TooManyImages(too_many)),
            "labels": FileField(max_bytes=MAX_FIT_LABELS_BYTES),
            "boxes": FileField(max_bytes=MAX_BOXES_BYTES, or_text=True),
        }
        form = await read_form_within(BODY_S, request, fields)
        move_boxes(form)
        check_fields(form.fields, ("name", "version", "boxes", "labels_fit"), "images, labels")
        sent = {name: text for name, value in form.fields.items() if (text := value.strip())}
        if "name" not in sent:
            raise BadField("name", "the field name is missing; it names the set of landmarks")
        labels_fit = sent.get("labels_fit", CHOICES[0])
        if labels_fit not in CHOICES:
            raise BadField("labels_fit", f"labels_fit is {labels_fit[:80]!r}; expected {' or '.join(CHOICES)}")
        labels = form.first("labels")
        if labels is None:
            raise BadLabels("no labels; send CSV, COCO or others in the field labels (curl -F labels=@labels.csv)")
        pictures = [part for part in form.files if part.name == "images"]
        if not pictures:
            raise NoImages("no picture; send the labelled ones in the field images (curl -F images=@photo.jpg)")
        boxes = parse_boxes(sent.get("boxes"), [part.filename for part in pictures])
        for index, entry in enumerate(boxes):
            if len(entry.boxes) > 1:
                raise BadBoxes(f"boxes[{index}] has {len(entry.boxes)} boxes; labels are for one object in a picture")
        uploads = [
            Upload(index, part.filename, partial(bytes, part.data), box)
            for index, (part, box) in enumerate(zip(pictures, boxes, strict=True))
        ]
        name = check_set_name(sent["name"])
        parts = [(part.filename, hashlib.sha256(part.data).hexdigest()) for part in (labels, *pictures)]
        content = fingerprint({"fields": sent, "parts": parts}, ())
        return cls(name, sent.get("version"), bytes(labels.data), uploads, labels_fit, content)


async def fit_landmarks(
    pipeline: Pipeline, versions: Versions, category: str, request: LandmarkRequest, digest: str | None = None
) -> tuple[FittedLandmarks, bool]:
    """Fit landmarks and store them with the version.

    The pictures are sent a batch at a time, so that those of other requests go in between.

    Args:
        digest: names the request, if it may be sent again.

    Returns:
        The landmarks, and whether the same request fitted them before.

    Raises:
        Conflict: the version has a set of that name.
        BadLabels, BadLandmarks: the labels can't be read or fitted.
        PPLError: a picture can't be used, or no worker answers.
    """
    threads, additions = pipeline.threads, versions.additions
    version = await threads.io(versions.version, category, request.version)
    names = [upload.filename for upload in request.uploads]
    labels, labelled, absent = await threads.decode(read_labelled, request.labels, names)

    def describe(fitted: LandmarkSet) -> FittedLandmarks:
        return FittedLandmarks(
            category=category,
            version=version.name,
            **fitted.model_dump(),
            unlabelled_images=len(names) - len(labelled),
            labels_without_image=absent,
        )

    async def find_replayed() -> FittedLandmarks | None:
        place = category, version.name, request.name
        if digest is None or await threads.io(additions.landmarks_request, *place) != digest:
            return None
        return describe(await threads.io(additions.landmarks, *place))

    if replayed := await find_replayed():
        return replayed, True
    await threads.io(additions.check_free, category, version.name, request.name)
    estimator = Estimator(pipeline, Query(category, version.name).fit_to(version), version)
    pictures, keypoints = [], []
    batch_limit = pipeline.settings.batch_limit
    for first in range(0, len(labelled), batch_limit):
        found = await estimator.find_poses([request.uploads[index] for index in labelled[first : first + batch_limit]])
        pictures += [FittedPicture(box.width, box.height, box.frame, box.orientation) for box in found.fitted]
        keypoints += [pose.keypoints for pose in found.poses]
    stacked = np.stack(keypoints).astype(np.float64)
    fitted = await threads.decode(fit_set, request.name, labels, pictures, stacked, request.labels_fit)
    try:
        await threads.io(additions.put_landmarks, category, version.name, fitted, digest)
    except NameTaken:
        if replayed := await find_replayed():  # its first attempt went on meanwhile
            return replayed, True
        raise
    return describe(fitted), False
