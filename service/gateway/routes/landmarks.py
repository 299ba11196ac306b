"""/priors/{category}/landmarks: fit, show and delete sets of landmarks."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.access.guard import key_id_of
from service.contract.errors import UnknownLandmarks
from service.contract.versions.landmarks import LandmarkSet
from service.estimates.landmark_fitting import LandmarkRequest, fit_landmarks
from service.gateway.gateway import CurrentGateway, Gateway, new_router
from service.http.headers import REPLAYED_HEADER, IdempotencyKey, idempotency_key, request_digest
from service.http.problems import responses
from service.http.requests import body_bytes
from service.runtime.settings import Settings
from service.versions.openapi import landmarks_body
from service.versions.schemas import FittedLandmarks, Landmarks, LandmarksPage

from .priors import Version

router = new_router("landmarks")


def make_router(settings: Settings) -> APIRouter:
    """Return the route whose documentation has a configured limit."""
    made = new_router("landmarks")

    @made.post(
        "/priors/{category}/landmarks",
        status_code=201,
        summary="Fit landmarks",
        responses=responses(409, 503),
        openapi_extra=landmarks_body(settings.landmarks_max_images),
    )
    async def post_landmarks(
        request: Request, gateway: CurrentGateway, response: Response, category: str, key: IdempotencyKey = None
    ) -> FittedLandmarks:
        """Fit your own anatomical points from a few labelled pictures (10 to 50).

        The poses of the pictures are estimated, and a linear map from the keypoints to each landmark is fitted by
        ridge regression, whose strength is chosen by cross-validation. `cross_validation` has the errors on pictures
        left out of the fit, and those of the landmarks' mean position as a baseline. From then on `POST /estimate`
        with `landmarks=NAME` adds these points. They belong to one version: other versions have other keypoints.

        Sent again with the same `Idempotency-Key`, the request returns the set that it fitted before, with
        `Idempotent-Replayed: true`; otherwise a name that is taken is refused with 409.
        """
        idempotency_key(request)  # refuses a bad one before the upload
        with gateway.budget.hold(body_bytes(request.scope), key_id_of(request.scope)):
            asked = await LandmarkRequest.read(request, gateway.settings)
            digest = request_digest(request, key_id_of(request.scope), asked.content)
            fitted, replayed = await fit_landmarks(gateway.pipeline, gateway.versions, category, asked, digest)
        if replayed:
            response.headers[REPLAYED_HEADER] = "true"
        response.headers["Location"] = f"/priors/{category}/landmarks/{fitted.name}?version={fitted.version}"
        return fitted

    return made


@router.get("/priors/{category}/landmarks", summary="List landmarks", response_model=LandmarksPage)
async def get_all_landmarks(gateway: CurrentGateway, category: str, version: Version = None) -> dict[str, Any]:
    """List the sets of landmarks of a version by name, in one page: a version has at most 100."""
    return await gateway.threads.io(_page, gateway, category, version)


@router.get("/priors/{category}/landmarks/{name}", summary="A set of landmarks", response_model=Landmarks)
async def get_landmarks(gateway: CurrentGateway, category: str, name: str, version: Version = None) -> dict[str, Any]:
    """Return a set of landmarks with its maps and its cross-validated errors."""
    resolved = await gateway.threads.io(gateway.versions.store.resolve, category, version)
    found = await gateway.threads.io(gateway.versions.additions.landmarks, category, resolved, name)
    return _document(category, resolved, found)


@router.delete("/priors/{category}/landmarks/{name}", status_code=204, summary="Delete landmarks")
async def delete_landmarks(gateway: CurrentGateway, category: str, name: str, version: Version = None) -> None:
    """Delete a set of landmarks."""
    resolved = await gateway.threads.io(gateway.versions.store.resolve, category, version)
    await gateway.threads.io(gateway.versions.additions.remove_landmarks, category, resolved, name)


def _page(gateway: Gateway, category: str, version: str | None) -> dict[str, Any]:
    additions = gateway.versions.additions
    resolved = gateway.versions.store.resolve(category, version)
    items = []
    for name in additions.landmark_sets(category, resolved):
        with suppress(UnknownLandmarks):  # deleted meanwhile
            found = additions.landmarks(category, resolved, name)
            error_percent = found.cross_validation.error_percent
            items.append({**_document(category, resolved, found), "error_percent": error_percent})
    return {"items": items, "next_cursor": None}


def _document(category: str, version: str, found: LandmarkSet) -> dict[str, Any]:
    return {"category": category, "version": version, **found.model_dump(mode="json")}
