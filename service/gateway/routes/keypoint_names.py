"""/priors/{category}/keypoint-names: names of the keypoints of a version."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from service.contract.versions.additions import check_names
from service.gateway.gateway import gateway_of
from service.http.headers import IfMatch, json_etag, precondition
from service.http.problems import responses
from service.versions.schemas import KeypointNames, NewKeypointNames

from .priors import Version

router = APIRouter(tags=["priors"])

_ETAG = {"ETag": {"description": "of these names; for If-Match", "schema": {"type": "string"}}}


@router.get(
    "/priors/{category}/keypoint-names",
    summary="The names of keypoints",
    response_model=KeypointNames,
    responses={200: {"headers": _ETAG, "description": "the names"}, **responses(400, 404)},
)
async def get_keypoint_names(
    request: Request, response: Response, category: str, version: Version = None
) -> dict[str, Any]:
    """Return the names of the keypoints of a version; send the `ETag` as `If-Match` to rename them."""
    gateway = gateway_of(request)
    found = await gateway.threads.io(gateway.versions.keypoint_names, category, version)
    response.headers["ETag"] = json_etag(found["names"])
    return found


@router.put(
    "/priors/{category}/keypoint-names",
    summary="Name the keypoints",
    response_model=KeypointNames,
    responses={
        200: {"headers": _ETAG, "description": "the names are set"},
        **responses(400, 404, 412, 415, 422, 428),
    },
)
async def put_keypoint_names(
    request: Request,
    response: Response,
    category: str,
    given: Annotated[NewKeypointNames, Body()],
    version: Version = None,
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Set the names of the keypoints of one version, by default the active one.

    Its prior and its estimates then include the names. They belong to the version, because another training finds other
    keypoints. The first names need no `If-Match`; later ones do.
    """
    gateway = gateway_of(request)
    versions = gateway.versions
    check = precondition(if_match, "a list of names")

    def put() -> dict[str, Any]:
        before = versions.keypoint_names(category, version)
        name = before["version"]
        names = check_names(given.names, len(before["names"]))

        def check_unchanged(now: tuple[str, ...] | None) -> None:
            if now is not None or if_match is not None:
                check(json_etag(list(now or before["names"])))

        versions.additions.put_names(category, name, names, check_unchanged)
        return {"category": category, "version": name, "names": list(names)}

    found = await gateway.threads.io(put)
    response.headers["ETag"] = json_etag(found["names"])
    return found
