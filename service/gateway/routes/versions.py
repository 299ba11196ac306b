"""/priors/{category}/aliases, and the deletion of versions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from service.contract.versions.changes import delete_version, move_alias, remove_alias
from service.gateway.gateway import gateway_of
from service.http.headers import IfMatch, etag, precondition
from service.http.problems import responses
from service.versions.schemas import AliasEntry, AliasPage, AliasTarget

router = APIRouter(tags=["versions"])

_ETAG = {"ETag": {"description": "names the version that it points to; for If-Match", "schema": {"type": "string"}}}


@router.get(
    "/priors/{category}/aliases",
    summary="List a category's aliases",
    response_model=AliasPage,
    responses=responses(400, 404),
)
async def get_aliases(request: Request, category: str) -> dict[str, Any]:
    """Return the names that point to versions: `active`, which requests without a version get, then the others by name.

    A category has at most 100, so one page has all.
    """
    gateway = gateway_of(request)
    found = await gateway.threads.io(gateway.versions.store.aliases, category)
    return {"items": [_entry(category, alias, version) for alias, version in found.items()], "next_cursor": None}


@router.get(
    "/priors/{category}/aliases/{alias}",
    summary="An alias",
    response_model=AliasEntry,
    responses={200: {"headers": _ETAG, "description": "where it points"}, **responses(400, 404)},
)
async def get_alias(request: Request, response: Response, category: str, alias: str) -> dict[str, Any]:
    """Return the version that an alias points to; its `ETag` goes into `If-Match` when it is moved."""
    gateway = gateway_of(request)
    version = await gateway.threads.io(gateway.versions.store.alias, category, alias)
    response.headers["ETag"] = etag(version)
    return _entry(category, alias, version)


@router.put(
    "/priors/{category}/aliases/{alias}",
    summary="Point an alias to a version",
    response_model=AliasEntry,
    responses={
        200: {"headers": _ETAG, "description": "it was moved"},
        201: {"model": AliasEntry, "headers": _ETAG, "description": "it is new"},
        **responses(400, 404, 409, 412, 415, 422, 428),
    },
)
async def put_alias(
    request: Request,
    response: Response,
    category: str,
    alias: str,
    target: Annotated[AliasTarget, Body()],
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Create an alias, or move it for all clients at once. Move `active` to an older version to roll back.

    A new alias needs no `If-Match`. To move one, send its current ETag, so that one of two concurrent moves is refused
    (412).

    ```sh
    curl -X PUT --json '{"version": "active"}' http://127.0.0.1:8000/priors/dog/aliases/champion
    ```
    """
    gateway = gateway_of(request)
    check = precondition(if_match, f"the alias '{alias[:80]}'")
    store = gateway.versions.store
    version, new = await gateway.threads.io(
        move_alias, store, category, alias, target.version, lambda now: check(now and etag(now))
    )
    response.status_code = 201 if new else 200
    response.headers["ETag"] = etag(version)
    return _entry(category, alias, version)


@router.delete(
    "/priors/{category}/aliases/{alias}",
    status_code=204,
    summary="Remove an alias",
    responses=responses(400, 404, 409, 412, 422),
)
async def delete_alias(request: Request, category: str, alias: str, if_match: IfMatch = None) -> None:
    """Remove an alias; its version stays. `active` can only be moved."""
    gateway = gateway_of(request)
    check = precondition(if_match, f"the alias '{alias[:80]}'", required=False)
    store = gateway.versions.store
    await gateway.threads.io(remove_alias, store, category, alias, lambda now: check(now and etag(now)))


@router.delete(
    "/priors/{category}/versions/{version}",
    status_code=204,
    summary="Delete a version",
    responses=responses(400, 404, 409),
)
async def remove_version(request: Request, category: str, version: str) -> None:
    """Delete a version permanently, with the names and landmarks added to it.

    While an alias such as `active` points to the version, this is refused (409, `version_in_use`): move the alias
    first.
    """
    gateway = gateway_of(request)
    await gateway.threads.io(delete_version, gateway.versions.store, category, version)


def _entry(category: str, alias: str, version: str) -> dict[str, Any]:
    return {"category": category, "alias": alias, "version": version}
