"""/priors/{category}/versions: export a version as one file and import it on another server."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.contract.errors import BadVersionFile
from service.contract.versions.store import ACTIVE, check_category
from service.gateway.gateway import Gateway, gateway_of
from service.http.multipart import UploadFile, UploadFolder, read_form
from service.http.problems import BadField, responses
from service.versions.export import export_version
from service.versions.import_version import import_version
from service.versions.openapi import import_body
from service.versions.schemas import VersionEntry

router = APIRouter(tags=["versions"])

_TRUTHS = {"": None, "true": True, "false": False}


@router.get(
    "/priors/{category}/versions/{version}/export",
    summary="Export a version",
    response_class=Response,
    responses={
        200: {"content": {"application/zip": {}}, "description": "a zip of the version's files and a manifest"},
        **responses(400, 404),
    },
)
async def get_export(request: Request, category: str, version: str) -> Response:
    """Return a version as one file that another server can import.

    It contains the weights as safetensors, everything else as JSON, including the names and landmarks added to the
    version, and a manifest with the size and the SHA-256 of each member.
    """
    gateway = gateway_of(request)
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
    responses=responses(400, 404, 408, 409, 413, 415, 422, 507),
    openapi_extra=import_body(),
)
async def post_import(request: Request, category: str) -> Response:
    """Create a version from an exported file, under its own name, in this category or in another.

    The server checks the format, every checksum, the settings, and that the weights fit these settings (by their
    header) before it publishes the version. The version becomes active if `activate` is true, or if the category has no
    active version and `activate` is not given.
    """
    gateway = gateway_of(request)
    check_category(category)
    max_bytes = gateway.settings.version_max_bytes
    async with UploadFolder.create_in(gateway.versions.store.root, gateway.threads.upload) as upload:
        archive = upload.file("archive", max_bytes)
        activate = await _receive(request, archive)
        await upload.flush()
        entry = await gateway.threads.upload(_publish, gateway, archive.path, category, activate)
    headers = {"Location": f"/priors/{category}?version={entry['version']}"}
    return JSONResponse(entry, status_code=201, headers=headers)


async def _receive(request: Request, archive: UploadFile) -> bool | None:
    form = await read_form(request, {"file": archive.field})
    for field in form.fields:
        if field != "activate":
            raise BadField(field, f"unknown field {field!r}; known are file and activate")
    if archive.is_empty:
        raise BadVersionFile("no version came, or an empty file; send one in the field file (curl -F file=@FILE.zip)")
    text = form.fields.get("activate", "").strip().lower()
    if text not in _TRUTHS:
        raise BadField("activate", f"activate is {text[:80]!r}; it must be true or false")
    return _TRUTHS[text]


def _publish(gateway: Gateway, archive: Path, category: str, activate: bool | None) -> dict[str, Any]:
    versions = gateway.versions
    store = versions.store
    name = import_version(store, archive, archive.with_name("version"), category, gateway.settings.version_max_bytes)
    if activate or (activate is None and ACTIVE not in store.aliases(category)):
        store.activate(category, name)
    return versions.version_entry(category, name, store.aliases(category))
