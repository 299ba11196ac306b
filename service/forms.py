"""Multipart forms read as they arrive: fields and small files into memory, an upload straight to its place.

The framework's own parser spools every file to a temporary one first; an archive of gigabytes
would be written twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .contract.errors import BadRequest
from .errors import BadField, UnsupportedMedia

Write = Callable[[bytes], Awaitable[None]]

MAX_FIELDS = 200
MAX_FIELD_BYTES = 256 * 2**10
_FLUSH_BYTES = 2**20


@dataclass
class Part:
    """A file of a form; ``data`` is empty when its bytes went to a sink."""

    filename: str
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Form:
    """What a multipart body held: its fields by name, and the files of the one field that takes files."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[Part] = field(default_factory=list)


def media_type(headers: Mapping[str, str]) -> str:
    """The media type of a request's body in small letters, without its options; empty where it has none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_form(
    request: Request, file_field: str, max_files: int, too_many: Callable[[], Exception], sink: Write | None = None
) -> Form:
    """Read a request's multipart body. A browser's empty file choice counts as no file.

    Args:
        file_field: the one field that takes files.
        max_files: as many may come.
        too_many: makes the error raised for more.
        sink: where the files' bytes go as they arrive, instead of into memory.

    Raises:
        UnsupportedMedia: the body is no multipart form.
        BadField: a field was given twice or is too long, or a file came in another one.
        BadRequest: the body is malformed, or ends early.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMedia(
            f"the body is {kind.decode('latin-1')[:80] or 'of no media type'}; "
            "send multipart/form-data with its boundary, as `curl -F` does"
        )
    try:
        reader = _Reader(options[b"boundary"], file_field, max_files, too_many, sink)
    except FormParserError as error:
        raise BadRequest(f"the multipart body's boundary is of no use: {error}") from error
    async for chunk in request.stream():
        await reader.feed(chunk)
    return await reader.finish()


class _Reader:
    def __init__(
        self, boundary: bytes, file_field: str, max_files: int, too_many: Callable[[], Exception], sink: Write | None
    ) -> None:
        self._form = Form()
        self._file_field, self._max_files, self._too_many, self._sink = file_field, max_files, too_many, sink
        self._name, self._is_file = "", False
        self._data = bytearray()  # of the part that is being read
        self._headers: dict[str, bytes] = {}
        self._header = (bytearray(), bytearray())
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest(f"the multipart body is malformed: {error}") from error
        await self._flush(_FLUSH_BYTES)

    async def finish(self) -> Form:
        if not self._ended:
            raise BadRequest("the multipart body ends before its last boundary; send all of it")
        await self._flush(0)
        self._form.files = [part for part in self._form.files if part.filename or part.data]
        return self._form

    async def _flush(self, above_bytes: int) -> None:
        if self._sink is None:
            return
        for part in self._form.files:
            if len(part.data) > above_bytes:
                data = bytes(part.data)
                part.data.clear()
                await self._sink(data)

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[name.decode("latin-1").lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        if b"name" not in options:
            raise BadRequest("a part of the multipart body has no name")
        self._name, self._is_file = _text(options[b"name"])[:80], b"filename" in options
        self._data = bytearray()
        if self._is_file:
            self._begin_file(_text(options[b"filename"]))
        elif self._name == self._file_field:
            raise BadField(self._name, f"{self._name} came as text; send the file itself (curl -F {self._name}=@FILE)")
        elif self._name in self._form.fields:
            raise BadField(self._name, f"the field {self._name!r} was given twice; give it once")
        elif len(self._form.fields) >= MAX_FIELDS:
            raise BadRequest(f"the form has more than {MAX_FIELDS} fields")

    def _begin_file(self, filename: str) -> None:
        if self._name != self._file_field:
            raise BadField(self._name, f"a file came in the field {self._name!r}; files go into {self._file_field!r}")
        if len(self._form.files) >= self._max_files:
            raise self._too_many()
        self._form.files.append(Part(filename, self._data))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file and len(self._data) + end - start > MAX_FIELD_BYTES:
            raise BadField(self._name, f"the field {self._name!r} has more than {MAX_FIELD_BYTES} bytes")
        self._data += data[start:end]

    def _on_part_end(self) -> None:
        if not self._is_file:
            self._form.fields[self._name] = _text(bytes(self._data))

    def _on_end(self) -> None:
        self._ended = True


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
