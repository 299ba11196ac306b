"""/priors: read what was learned from disk, without a worker, and name its keypoints."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import Body, Query
from starlette.responses import JSONResponse, Response

from service.contract.errors import BadCursor, UnknownVersion
from service.contract.versions.additions import check_names
from service.contract.versions.store import is_category, is_version
from service.gateway.gateway import CurrentGateway, Limit, new_router
from service.http.headers import IfMatch, json_etag, precondition
from service.http.openapi import etag_header
from service.http.problems import BadField, responses
from service.versions.comparison import STRONG, Match, compare
from service.versions.schemas import (
    History,
    KeypointNames,
    Memory,
    NewKeypointNames,
    Prior,
    PriorDiff,
    PriorPage,
    VersionPage,
)

router = new_router("priors")

MIN_SIDE_PX, MAX_SIDE_PX = 64, 2048
_ETAG = etag_header("of these names; for If-Match")

Version = Annotated[
    str | None, Query(description="a version of the category, or an alias of one; the active one unless given")
]
Cursor = Annotated[str | None, Query(max_length=64)]


@router.get("/priors", summary="List priors", response_model=PriorPage)
async def get_priors(gateway: CurrentGateway, limit: Limit = 50, cursor: Cursor = None) -> dict[str, Any]:
    """Return the categories that were learned, by name."""
    if cursor is not None and not is_category(cursor):
        raise _bad_cursor(cursor)

    def page() -> dict[str, Any]:
        names = [name for name in gateway.versions.store.categories() if cursor is None or name > cursor]
        items = [gateway.versions.entry(name) for name in names[:limit]]
        return _page(items, names, limit)

    return await gateway.threads.io(page)


@router.get("/priors/{category}", summary="A prior", response_model=Prior)
async def get_prior(
    gateway: CurrentGateway,
    category: str,
    version: Version = None,
    include: Annotated[str, Query(description="`links` for all links, not only those that one would draw")] = "",
) -> Response:
    """Return a category's prior: its typical pose, the weights of the links, and how it was learned.

    A prior has no picture: its coordinates are normalised, [-1, 1] over the model's square with y down.
    """
    if include not in ("", "links"):
        raise BadField("include", f"include is {include[:80]!r}; it may be links, or left out")
    every = include == "links"
    return await gateway.threads.io(lambda: JSONResponse(gateway.versions.prior(category, version, all_links=every)))


@router.get(
    "/priors/{category}/link-map",
    summary="A prior as a picture",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "a square PNG"}},
)
async def get_link_map(
    gateway: CurrentGateway,
    category: str,
    version: Version = None,
    size: Annotated[int, Query(ge=MIN_SIDE_PX, le=MAX_SIDE_PX, description="side in pixels")] = 512,
) -> Response:
    """Return the link map of the prior's own pose (PPL eq. 3) in colours, brighter for stronger links."""
    store = gateway.versions.store
    name = await gateway.threads.io(store.resolve, category, version)
    identity = await gateway.threads.io(store.identity, category, name)
    return Response(await gateway.draw_prior(category, name, identity, size), media_type="image/png")


@router.get("/priors/{category}/memory", summary="A prior's memory", response_model=Memory)
async def get_memory(
    gateway: CurrentGateway,
    category: str,
    version: Version = None,
    include: Annotated[str, Query(description="`vectors` for all vectors of all banks")] = "",
    bank: Annotated[
        int | None,
        Query(ge=0, description="add `variation`: a pose with each vector of this bank in turn", examples=[0]),
    ] = None,
    prototype: Annotated[
        int | None,
        Query(ge=0, description="with bank: the prototype to vary, by default the keypoint prior", examples=[0]),
    ] = None,
) -> Response:
    """Return the memory's banks, the usage of each of their vectors, and the prototypical poses.

    With `bank`, `variation` has the poses that differ in that bank's vector alone: they show what the bank stores.

    A prototype represents a cluster of `count` training pictures with similar codes. A version of the method `autolink`
    has no memory: no banks and no prototypes.
    """
    if include not in ("", "vectors"):
        raise BadField("include", f"include is {include[:80]!r}; it may be vectors, or left out")
    if prototype is not None and bank is None:
        raise BadField("prototype", "prototype names the pose that a bank varies; send bank too, or leave it out")

    def read() -> Response:
        memory = gateway.versions.memory
        found = memory(category, version, vectors=include == "vectors", bank=bank, prototype=prototype)
        return JSONResponse(found)

    return await gateway.threads.io(read)


@router.get("/priors/{category}/history", summary="How a prior came to be", response_model=History)
async def get_history(gateway: CurrentGateway, category: str, version: Version = None) -> Response:
    """Return snapshots of the keypoint prior and of the link weights, from the first training step to the last.

    For a version of a release that stored none, the response is 404 with the code `no_history`.
    """
    return await gateway.threads.io(lambda: JSONResponse(gateway.versions.history(category, version)))


@router.get("/priors/{category}/versions", summary="List a category's versions", response_model=VersionPage)
async def get_versions(
    gateway: CurrentGateway, category: str, limit: Limit = 50, cursor: Cursor = None
) -> dict[str, Any]:
    """Return the versions of a category, newest first."""

    def page() -> dict[str, Any]:
        store = gateway.versions.store
        names, pointers = store.versions(category), store.aliases(category)
        if cursor is not None and not is_version(cursor):  # its version may have been deleted since
            raise _bad_cursor(cursor)
        names = [name for name in names if cursor is None or name < cursor]
        items = []
        for name in names[:limit]:
            with suppress(UnknownVersion):  # deleted meanwhile
                items.append(gateway.versions.version_entry(category, name, pointers))
        return _page(items, names, limit)

    return await gateway.threads.io(page)


@router.get("/priors/{category}/diff", summary="How two priors differ", response_model=PriorDiff)
async def get_diff(
    gateway: CurrentGateway,
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
    prior = gateway.versions.prior
    return await gateway.threads.io(
        lambda: JSONResponse(compare(prior(category, older), prior(category, newer), match, strong))
    )


@router.get(
    "/priors/{category}/keypoint-names",
    summary="The names of keypoints",
    response_model=KeypointNames,
    responses={200: {"headers": _ETAG, "description": "the names"}},
)
async def get_keypoint_names(
    gateway: CurrentGateway, response: Response, category: str, version: Version = None
) -> dict[str, Any]:
    """Return the names of the keypoints of a version; send the `ETag` as `If-Match` to rename them."""
    found = await gateway.threads.io(gateway.versions.keypoint_names, category, version)
    response.headers["ETag"] = json_etag(found["names"])
    return found


@router.put(
    "/priors/{category}/keypoint-names",
    summary="Name the keypoints",
    response_model=KeypointNames,
    responses={200: {"headers": _ETAG, "description": "the names are set"}, **responses(412, 428)},
)
async def put_keypoint_names(
    gateway: CurrentGateway,
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
    check = precondition(if_match, "a list of names")

    def put() -> dict[str, Any]:
        before = gateway.versions.keypoint_names(category, version)
        names = check_names(given.names, len(before["names"]))

        def check_unchanged(now: tuple[str, ...] | None) -> None:
            if now is not None or if_match is not None:
                check(json_etag(list(now or before["names"])))

        gateway.versions.additions.put_names(category, before["version"], names, check_unchanged)
        return {**before, "names": list(names)}

    found = await gateway.threads.io(put)
    response.headers["ETag"] = json_etag(found["names"])
    return found


def _page(items: list[dict[str, Any]], names: list[str], limit: int) -> dict[str, Any]:
    return {"items": items, "next_cursor": names[limit - 1] if len(names) > limit else None}


def _bad_cursor(cursor: str) -> BadCursor:
    return BadCursor(f"cursor {cursor[:80]!r} is not valid; send the next_cursor of a page of this list")
