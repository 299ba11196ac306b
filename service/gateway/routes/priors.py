"""/priors: read what was learned from disk, without a worker."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from service.contract.errors import BadCursor, UnknownVersion
from service.contract.versions.store import is_category, is_version
from service.estimates.drawing import png, prior_picture
from service.gateway.gateway import Gateway, gateway_of
from service.http.problems import BadField, responses
from service.versions.comparison import STRONG, Match, compare
from service.versions.schemas import History, Memory, Prior, PriorDiff, PriorPage, VersionPage

router = APIRouter(tags=["priors"])

MAX_PAGE = 200
MIN_SIDE_PX, MAX_SIDE_PX = 64, 2048

Version = Annotated[
    str | None, Query(description="a version of the category, or an alias of one; the active one unless given")
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="items in a page")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before")]


@router.get("/priors", summary="List priors", response_model=PriorPage, responses=responses(400, 422))
async def get_priors(request: Request, limit: Limit = 50, cursor: Cursor = None) -> dict[str, Any]:
    """Return the categories that were learned, by name."""
    gateway = gateway_of(request)
    if cursor is not None and not is_category(cursor):
        raise BadCursor(f"cursor {cursor[:80]!r} is not valid; send the next_cursor of a page of this list")

    def page() -> dict[str, Any]:
        names = [name for name in gateway.versions.store.categories() if cursor is None or name > cursor]
        items = [gateway.versions.entry(name) for name in names[:limit]]
        return _page(items, names, limit)

    return await gateway.threads.io(page)


@router.get("/priors/{category}", summary="A prior", response_model=Prior, responses=responses(400, 404))
async def get_prior(request: Request, category: str, version: Version = None) -> Response:
    """Return a category's prior: its typical pose, the weights of the links, and how it was learned.

    A prior has no picture: its coordinates are normalised, [-1, 1] over the model's square with y down.
    """
    gateway = gateway_of(request)
    return await _json(gateway, lambda: gateway.versions.prior(category, version))


@router.get(
    "/priors/{category}/link-map",
    summary="A prior as a picture",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "a square PNG"}, **responses(400, 404, 422)},
)
async def get_link_map(
    request: Request,
    category: str,
    version: Version = None,
    size: Annotated[int, Query(ge=MIN_SIDE_PX, le=MAX_SIDE_PX, description="side in pixels")] = 512,
) -> Response:
    """Return the link map of the prior's own pose (PPL eq. 3) in colours, brighter for stronger links."""
    gateway = gateway_of(request)
    kept = gateway.prior_pictures
    store = gateway.versions.store
    name = await gateway.threads.io(store.resolve, category, version)
    key = (category, name, await gateway.threads.io(store.identity, category, name), size)

    def draw() -> bytes:
        picture = kept.get(key)  # drawn while this call waited
        if picture is None:
            picture = png(prior_picture(gateway.versions.prior(category, name), size))
            kept.put(key, picture)
        return picture

    return Response(kept.get(key) or await gateway.threads.draw(draw), media_type="image/png")


@router.get(
    "/priors/{category}/memory", summary="A prior's memory", response_model=Memory, responses=responses(400, 404, 422)
)
async def get_memory(
    request: Request,
    category: str,
    version: Version = None,
    include: Annotated[str, Query(description="`vectors` for all vectors of all banks")] = "",
) -> Response:
    """Return the memory's banks, the usage of each of their vectors, and the prototypical poses.

    A prototype represents a cluster of `count` training pictures with similar codes. A version of the method `autolink`
    has no memory: no banks and no prototypes.
    """
    if include not in ("", "vectors"):
        raise BadField("include", f"include is {include[:80]!r}; it may be vectors, or left out")
    gateway = gateway_of(request)
    return await _json(gateway, lambda: gateway.versions.memory(category, version, vectors=bool(include)))


@router.get(
    "/priors/{category}/history",
    summary="How a prior came to be",
    response_model=History,
    responses=responses(400, 404),
)
async def get_history(request: Request, category: str, version: Version = None) -> Response:
    """Return snapshots of the keypoint prior and of the link weights, from the first training step to the last.

    For a version of a release that stored none, the response is 404 with the code `no_history`.
    """
    gateway = gateway_of(request)
    return await _json(gateway, lambda: gateway.versions.history(category, version))


@router.get(
    "/priors/{category}/versions",
    summary="List a category's versions",
    response_model=VersionPage,
    responses=responses(400, 404, 422),
)
async def get_versions(request: Request, category: str, limit: Limit = 50, cursor: Cursor = None) -> dict[str, Any]:
    """Return the versions of a category, newest first."""
    gateway = gateway_of(request)

    def page() -> dict[str, Any]:
        store = gateway.versions.store
        names, pointers = store.versions(category), store.aliases(category)
        if cursor is not None and not is_version(cursor):  # its version may have been deleted since
            raise BadCursor(f"cursor {cursor[:80]!r} is not valid; send the next_cursor of a page of this list")
        names = [name for name in names if cursor is None or name < cursor]
        items = []
        for name in names[:limit]:
            with suppress(UnknownVersion):  # deleted meanwhile
                items.append(gateway.versions.version_entry(category, name, pointers))
        return _page(items, names, limit)

    return await gateway.threads.io(page)


@router.get(
    "/priors/{category}/diff",
    summary="How two priors differ",
    response_model=PriorDiff,
    responses=responses(400, 404, 422),
)
async def get_diff(
    request: Request,
    category: str,
    older: Annotated[str, Query(alias="from", description="a version of the category, or an alias of one")],
    newer: Annotated[str, Query(alias="to", description="another one")] = "active",
    match: Annotated[
        Match,
        Query(description="which keypoints are the same: of one `number`, near in `position`, or what fits (`auto`)"),
    ] = "auto",
    strong: Annotated[
        float, Query(gt=0, le=1, description="share of its prior's strongest link from which on a link counts")
    ] = STRONG,
) -> Response:
    """Return the differences of two versions: moved keypoints, added and removed links, changed weights.

    Two trainings find different keypoints, in a different order and perhaps number. So the keypoints of two versions
    are matched one to one by the least sum of distances between their typical positions, unless both have the same
    names or one continues the other (`continue_from`). `matched_by` and `why` explain the choice; unmatched keypoints
    are listed.
    """
    gateway = gateway_of(request)
    priors = gateway.versions.prior
    return await _json(gateway, lambda: compare(priors(category, older), priors(category, newer), match, strong))


def _page(items: list[dict[str, Any]], names: list[str], limit: int) -> dict[str, Any]:
    return {"items": items, "next_cursor": names[limit - 1] if len(names) > limit else None}


async def _json(gateway: Gateway, make: Any) -> Response:
    """Return a JSON response; read and encode it in a thread, as a memory has many vectors."""
    body = await gateway.threads.io(lambda: JSONResponse(make()).body)
    return Response(body, media_type="application/json")
