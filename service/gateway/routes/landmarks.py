"""/priors/{category}/landmarks: labelled pictures → poses by the queue → a map to the user's own points."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.contract.errors import BadBoxes, BadLabels, NoImages, TooManyImages, UnknownLandmarks
from service.contract.versions.landmarks import LandmarkSet, check_set_name
from service.estimates.boxes import parse_boxes
from service.estimates.pictures import Upload
from service.estimates.tickets import Group
from service.gateway.gateway import Gateway, gateway_of
from service.http.body_limits import body_bytes
from service.http.multipart import FileField, Form, read_form
from service.http.problems import BadField, SlowBody, responses
from service.runtime.settings import Settings
from service.versions.landmarks import MAX_FIT_LABELS_BYTES, Array, FittedPicture, fit_set, read_labelled
from service.versions.openapi import landmarks_body
from service.versions.reader import Version as ReadyVersion
from service.versions.schemas import FittedLandmarks, Landmarks, LandmarksPage

from .priors import Version

BODY_S = 600.0  # how long a body may take to arrive

_FIELDS = ("name", "version", "boxes")


@dataclass(frozen=True)
class Wanted:
    """What a request asks for."""

    name: str
    version: str | None
    labels: bytes
    uploads: list[Upload]

    @classmethod
    def of(cls, form: Form) -> Wanted:
        """The form, checked.

        Raises:
            BadField, BadBoxes, BadLandmarks, BadLabels, NoImages.
        """
        values = form.fields
        for field in values:
            if field not in _FIELDS:
                raise BadField(field, f"unknown field {field!r}; known are images, labels, {', '.join(_FIELDS)}")
        if not values.get("name"):
            raise BadField("name", "the field name is missing; it names the set of landmarks")
        labels = form.first("labels")
        if labels is None:
            raise BadLabels("no labels came; send CSV or COCO JSON in the field labels (curl -F labels=@labels.csv)")
        pictures = [part for part in form.files if part.name == "images"]
        if not pictures:
            raise NoImages("no picture came; send the labelled ones in the field images (curl -F images=@photo.jpg)")
        boxes = parse_boxes(values.get("boxes"), len(pictures))
        for index, entry in enumerate(boxes):
            if len(entry.boxes) > 1:
                raise BadBoxes(f"boxes[{index}] holds {len(entry.boxes)} boxes; labels are of one thing a picture")
        uploads = [
            Upload(index, part.filename, partial(bytes, part.data), box)
            for index, (part, box) in enumerate(zip(pictures, boxes, strict=True))
        ]
        name, version = check_set_name(values["name"].strip()), values.get("version", "").strip() or None
        return cls(name, version, bytes(labels.data), uploads)


def make_router(settings: Settings) -> APIRouter:
    """The routes, documented with the limits as set."""
    router = APIRouter(tags=["landmarks"])

    @router.post(
        "/priors/{category}/landmarks",
        status_code=201,
        summary="Fit landmarks",
        response_model=FittedLandmarks,
        responses=responses(400, 404, 408, 409, 413, 415, 422, 429, 503),
        openapi_extra=landmarks_body(settings.landmarks_max_images),
    )
    async def post_landmarks(request: Request, category: str) -> Response:
        """Learns where your own anatomical points are, from a handful of pictures (10 to 50) that you labelled.

        The poses of the pictures are estimated, and a linear map from the keypoints to each landmark is fitted by
        ridge regression, its strength chosen by cross-validation. `cross_validation` says how far the landmarks
        are off on pictures that were not fitted on, beside what guessing their mean place comes to. From then on
        `POST /estimate` with `landmarks=NAME` has these points. They belong to one version: another one finds
        other keypoints.
        """
        return await _fit(request, gateway_of(request), category)

    @router.get(
        "/priors/{category}/landmarks",
        summary="List landmarks",
        response_model=LandmarksPage,
        responses=responses(400, 404),
    )
    async def get_all_landmarks(request: Request, category: str, version: Version = None) -> dict[str, Any]:
        """The sets of landmarks of a version, by name. It has at most 100, so they come in one page."""
        gateway = gateway_of(request)
        return await gateway.threads.io(_page, gateway, category, version)

    @router.get(
        "/priors/{category}/landmarks/{name}",
        summary="A set of landmarks",
        response_model=Landmarks,
        responses=responses(400, 404, 422),
    )
    async def get_landmarks(request: Request, category: str, name: str, version: Version = None) -> dict[str, Any]:
        """A set of landmarks with its maps and its cross-validated errors."""
        gateway = gateway_of(request)

        def read() -> dict[str, Any]:
            resolved = gateway.versions.store.resolve(category, version)
            return _shown(category, resolved, gateway.versions.additions.landmarks(category, resolved, name))

        return await gateway.threads.io(read)

    @router.delete(
        "/priors/{category}/landmarks/{name}",
        status_code=204,
        summary="Delete landmarks",
        responses=responses(400, 404, 422),
    )
    async def delete_landmarks(request: Request, category: str, name: str, version: Version = None) -> None:
        """Deletes a set of landmarks."""
        gateway = gateway_of(request)

        def remove() -> None:
            resolved = gateway.versions.store.resolve(category, version)
            gateway.versions.additions.remove_landmarks(category, resolved, name)

        await gateway.threads.io(remove)

    return router


async def _fit(request: Request, gateway: Gateway, category: str) -> Response:
    additions = gateway.versions.additions
    with gateway.budget.hold(body_bytes(request.scope)):
        wanted = Wanted.of(await _read(request, gateway.settings))
        version = await gateway.threads.io(gateway.versions.version, category, wanted.version)
        await gateway.threads.io(additions.check_free, category, version.name, wanted.name)
        names = [upload.filename for upload in wanted.uploads]
        labels, labelled, absent = await gateway.threads.decode(read_labelled, wanted.labels, names)
        sights, keypoints = await _poses(gateway, version, [wanted.uploads[index] for index in labelled])
    found = await gateway.threads.decode(fit_set, wanted.name, labels, sights, keypoints)
    await gateway.threads.io(additions.put_landmarks, category, version.name, found)
    counts = {"unlabelled_images": len(names) - len(labelled), "labels_without_image": absent}
    answer = {**_shown(category, version.name, found), **counts}
    headers = {"Location": f"/priors/{category}/landmarks/{wanted.name}?version={version.name}"}
    return JSONResponse(answer, status_code=201, headers=headers)


async def _read(request: Request, settings: Settings) -> Form:
    most = settings.landmarks_max_images

    def twice() -> BadField:
        return BadField("labels", "more than one file came in the field labels; send one")

    fields = {
        "images": FileField(most, lambda: TooManyImages(f"more than {most} pictures; a request may hold {most}")),
        "labels": FileField(1, twice, None, MAX_FIT_LABELS_BYTES),
    }
    try:
        async with asyncio.timeout(BODY_S):
            return await read_form(request, fields)
    except TimeoutError:
        raise SlowBody(f"the body took longer than {BODY_S:g} s to arrive; send fewer or smaller pictures") from None


async def _poses(gateway: Gateway, version: ReadyVersion, uploads: list[Upload]) -> tuple[list[FittedPicture], Array]:
    """The poses (N, K, 2) of pictures by the ordinary queue, a batch at a time: others' pictures go between."""
    group = Group(version.category, version.name, version.side, 0, False)
    sights, found = [], []
    limit = gateway.settings.batch_limit
    for first in range(0, len(uploads), limit):
        part = uploads[first : first + limit]
        squares = await asyncio.gather(
            *(gateway.threads.decode(upload.fit, version.side, gateway.picture_limits) for upload in part)
        )
        fitted = [only for [only] in squares]
        ticket = await gateway.batcher.estimate(group, [item.square for item in fitted])
        sights += [FittedPicture(item.width, item.height, item.frame) for item in fitted]
        found += [ticket.poses[index].keypoints for index in range(len(part))]
    return sights, np.stack(found).astype(np.float64)


def _page(gateway: Gateway, category: str, version: str | None) -> dict[str, Any]:
    additions = gateway.versions.additions
    resolved = gateway.versions.store.resolve(category, version)
    sets = []
    for name in additions.landmark_sets(category, resolved):
        with suppress(UnknownLandmarks):  # deleted meanwhile
            sets.append(additions.landmarks(category, resolved, name))
    items = [
        {
            "category": category,
            "version": resolved,
            "name": found.name,
            "landmarks": found.landmarks,
            "images": found.images,
            "error_percent": found.cross_validation.error_percent,
            "created_at": found.created_at,
        }
        for found in sets
    ]
    return {"items": items, "next_cursor": None}


def _shown(category: str, version: str, found: LandmarkSet) -> dict[str, Any]:
    return {"category": category, "version": version, **found.model_dump(mode="json")}
