"""Serve the inspection page: files in a folder named by their hash, so that they never change, compressed once."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from functools import cached_property
from importlib.resources import as_file, files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from model.version.palette import BOX_RGB, PALETTE

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "jpg": "image/jpeg",
    "zip": "application/zip",
}
_STORED = ("jpg", "zip")  # already compressed
# users' pictures and videos are blobs; the document has no inline script or style
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
_INDEX = "index.html"
_SAMPLES = 12  # held-out pictures of the sample category


class Page:
    """The files of the page, read and compressed at the first request."""

    @cached_property
    def _files(self) -> dict[str, bytes]:
        with as_file(files("service")) as service:
            found = {path.name: path.read_bytes() for path in sorted((service / "page").iterdir()) if path.is_file()}
            found["sample.zip"] = (service / "samples" / "dog.zip").read_bytes()
            with zipfile.ZipFile(service / "samples" / "dog_heldout.zip") as archive:
                names = sorted(archive.namelist())
                for number, name in enumerate(names[:: len(names) // _SAMPLES][:_SAMPLES]):
                    found[f"sample{number}.jpg"] = archive.read(name)
        colours = [f"#{colour.hex()}" for colour in PALETTE]
        named = f'export const BOX = "#{bytes(BOX_RGB).hex()}";\nexport const SAMPLES = {_SAMPLES};\n'
        found["palette.js"] = f"export default {json.dumps(colours)};\n{named}".encode()
        return found

    @cached_property
    def digest(self) -> str:
        """The hash of all files, the name of their folder."""
        whole = hashlib.sha256()
        for name, data in self._files.items():
            whole.update(f"\0{name}\0{len(data)}\0".encode() + data)
        return whole.hexdigest()[:16]

    @cached_property
    def _compressed(self) -> dict[str, bytes]:
        return {
            name: gzip.compress(data, mtime=0)
            for name, data in self._files.items()
            if name.rpartition(".")[2] not in _STORED
        }

    def index(self, root_path: str) -> bytes:
        """Return the HTML document with the addresses of its files."""
        # without a root path they are relative, as a proxy may strip a prefix
        folder = f"{root_path}/page/{self.digest}" if root_path else f"page/{self.digest}"
        return self._files[_INDEX].replace(b"{folder}", folder.encode())

    def respond(self, request: Request, digest: str, name: str) -> Response:
        """Return a file that browsers may cache permanently. Raises HTTPException (404)."""
        if digest != self.digest or name not in self._files or name == _INDEX:
            raise HTTPException(404)
        headers = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        data = self._files[name]
        if name in self._compressed and "gzip" in request.headers.get("accept-encoding", ""):
            data, headers["Content-Encoding"] = self._compressed[name], "gzip"
        return Response(data, headers=headers, media_type=_MEDIA_TYPES[name.rpartition(".")[2]])


def make_router() -> APIRouter:
    """Return the routes of the page, which are no part of the API."""
    router, page = APIRouter(include_in_schema=False), Page()

    @router.get("/")
    def get_index(request: Request) -> Response:
        tag = f'"{page.digest}"'
        headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": tag}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(
            page.index(request.scope.get("root_path", "")), headers=headers, media_type=_MEDIA_TYPES["html"]
        )

    @router.get("/page/{digest}/{name}")
    def get_file(request: Request, digest: str, name: str) -> Response:
        return page.respond(request, digest, name)

    return router
