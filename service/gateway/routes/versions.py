"""/priors/{category}/aliases and /versions: move aliases; export, import and delete versions."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.access.guard import key_id_of
from service.contract.errors import BadVersionFile
from service.contract.versions.changes import delete_version, move_alias, remove_alias
from service.contract.versions.store import ACTIVE, check_category
from service.gateway.gateway import CurrentGateway, Gateway, new_router
from service.http.headers import (
    REPLAYED_HEADER,
    IdempotencyKey,
    IfMatch,
    etag,
    fingerprint,
    idempotency_key,
    precondition,
    request_digest,
)
from service.http.multipart import UploadFile, UploadFolder, check_fields, read_form
from service.http.openapi import etag_header
from service.http.problems import BadField, responses
from service.versions.export import export_version
from service.versions.import_version import import_version
from service.versions.openapi import import_body
from service.versions.schemas import AliasEntry, AliasPage, AliasTarget, VersionEntry

router = new_router("versions")

_ETAG = etag_header("names the version that it points to; for If-Match")
_TRUTHS = {"": None, "true": True, "false": False}


@router.get("/priors/{category}/aliases", summary="List a category's aliases")
async def get_aliases(gateway: CurrentGateway, category: str) -> AliasPage:
    """Return the names that point to versions: `active`, which requests without a version get, then the others by name.

    A category has at most 100, so one page has all.
    """
    found = await gateway.threads.io(gateway.versions.store.aliases, category)
    return AliasPage(
        items=[AliasEntry(category=category, alias=alias, version=version) for alias, version in found.items()]
    )


@router.get(
    "/priors/{category}/aliases/{alias}",
    summary="An alias",
    responses={200: {"headers": _ETAG, "description": "where it points"}},
)
async def get_alias(gateway: CurrentGateway, response: Response, category: str, alias: str) -> AliasEntry:
    """Return the version that an alias points to; its `ETag` goes into `If-Match` when it is moved."""
    version = await gateway.threads.io(gateway.versions.store.alias, category, alias)
    response.headers["ETag"] = etag(version)
    return AliasEntry(category=category, alias=alias, version=version)


@router.put(
    "/priors/{category}/aliases/{alias}",
    summary="Point an alias to a version",
    responses={
        200: {"headers": _ETAG, "description": "it was moved"},
        201: {"model": AliasEntry, "headers": _ETAG, "description": "it is new"},
        **responses(409, 412, 428),
    },
)
async def put_alias(
    gateway: CurrentGateway,
    response: Response,
    category: str,
    alias: str,
    target: Annotated[AliasTarget, Body()],
    if_match: IfMatch = None,
) -> AliasEntry:
    """Create an alias, or move it for all clients at once. Move `active` to an older version to roll back.

    A new alias needs no `If-Match`. To move one, send its current ETag, so that one of two concurrent moves is refused
    (412).

    ```sh
    curl -X PUT --json '{"version": "active"}' http://127.0.0.1:8000/priors/dog/aliases/champion
    ```
    """
    check = precondition(if_match, f"the alias '{alias[:80]}'")
    store = gateway.versions.store
    version, new = await gateway.threads.io(
        move_alias, store, category, alias, target.version, lambda now: check(now and etag(now))
    )
    response.status_code = 201 if new else 200
    response.headers["ETag"] = etag(version)
    return AliasEntry(category=category, alias=alias, version=version)


@router.delete(
    "/priors/{category}/aliases/{alias}",
    status_code=204,
    summary="Remove an alias",
    responses=responses(409, 412),
)
async def delete_alias(gateway: CurrentGateway, category: str, alias: str, if_match: IfMatch = None) -> None:
    """Remove an alias; its version stays. `active` can only be moved."""
    check = precondition(if_match, f"the alias '{alias[:80]}'", required=False)
    store = gateway.versions.store
    await gateway.threads.io(remove_alias, store, category, alias, lambda now: check(now and etag(now)))


@router.delete(
    "/priors/{category}/versions/{version}",
    status_code=204,
    summary="Delete a version",
    responses=responses(409),
)
async def remove_version(gateway: CurrentGateway, category: str, version: str) -> None:
    """Delete a version permanently, with the names and landmarks added to it.

    While an alias such as `active` points to the version, this is refused (409, `version_in_use`): move the alias
    first.
    """
    await gateway.threads.io(delete_version, gateway.versions.store, category, version)


@router.get(
    "/priors/{category}/versions/{version}/export",
    summary="Export a version",
    response_class=Response,
    responses={200: {"content": {"application/zip": {}}, "description": "a zip of the version's files and a manifest"}},
)
async def get_export(gateway: CurrentGateway, category: str, version: str) -> Response:
    """Return a version as one file that another server can import.

    It contains the weights as safetensors, everything else as JSON, including the names and landmarks added to the
    version, and a manifest with the size and the SHA-256 of each member.
    """
    name = await gateway.threads.io(gateway.versions.store.resolve, category, version)
    parts = export_version(gateway.versions, category, name)
    first = await gateway.threads.upload(next, parts)  # raises every error before the first part
    headers = {"Content-Disposition": f'attachment; filename="{category}-{name}.zip"'}
    return StreamingResponse(chain((first,), parts), media_type="application/zip", headers=headers)


@router.post(
    "/priors/{category}/versions/import",
    status_code=201,
    summary="Import a version",
    response_model=VersionEntry,
    responses=responses(409, 507),
    openapi_extra=import_body(),
)
async def post_import(request: Request, gateway: CurrentGateway, category: str, key: IdempotencyKey = None) -> Response:
    """Create a version from an exported file, under its own name, in this category or in another.

    Before it publishes the version, the server checks the format, every checksum, the settings, that the weights fit
    these settings, that their values are such as a training reaches, and that prior and memory follow from them. The
    version becomes active if `activate` is true, or if the category has no active version and `activate` is not given.

    Sent again with the same `Idempotency-Key`, the request returns the version that it imported before, with
    `Idempotent-Replayed: true`; otherwise a version that is there is refused with 409.
    """
    check_category(category)
    idempotency_key(request)  # refuses a bad one before the upload
    async with UploadFolder.create_in(gateway.versions.store.root, gateway.threads.upload) as upload:
        archive = upload.file("archive", gateway.settings.version_max_bytes)
        activate = await _receive(request, archive)
        content = await gateway.threads.upload(fingerprint, {"activate": activate}, [archive.path])
        digest = request_digest(request, key_id_of(request.scope), content)
        entry, replayed = await gateway.threads.upload(_publish, gateway, archive.path, category, activate, digest)
    headers = {"Location": f"/priors/{category}?version={entry['version']}"}
    if replayed:
        headers[REPLAYED_HEADER] = "true"
    return JSONResponse(entry, status_code=201, headers=headers)


async def _receive(request: Request, archive: UploadFile) -> bool | None:
    form = await read_form(request, {"file": archive.field})
    check_fields(form.fields, ["activate"], "file")
    if archive.is_empty:
        raise BadVersionFile("no version came, or an empty file; send one in the field file (curl -F file=@FILE.zip)")
    text = form.fields.get("activate", "").strip().lower()
    if text not in _TRUTHS:
        raise BadField("activate", f"activate is {text[:80]!r}; it must be true or false")
    return _TRUTHS[text]


def _publish(
    gateway: Gateway, archive: Path, category: str, activate: bool | None, digest: str | None
) -> tuple[dict[str, Any], bool]:
    store, max_bytes = gateway.versions.store, gateway.settings.version_max_bytes
    name, replayed = import_version(store, archive, archive.with_name("version"), category, max_bytes, digest)
    if activate or (activate is None and ACTIVE not in store.aliases(category)):
        store.activate(category, name)
    return gateway.versions.version_entry(category, name, store.aliases(category)), replayed
