"""Read multipart forms as they arrive: fields and small files into memory, uploads to their destination.

The framework's parser first writes each file to a temporary one: an archive of gigabytes would be written twice.
An upload goes to a folder on the data root's disk, which is removed unless something takes the files over.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote_to_bytes

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.contract.durable_files import folder_names, sync
from service.contract.errors import BadRequest, BodyTooLarge

from .problems import BadField, UnsupportedMedia

Write = Callable[[bytes], Awaitable[None]]
InThread = Callable[..., Awaitable[Any]]

MAX_FIELDS = 200
MAX_FIELD_BYTES = 256 * 2**10
_FLUSH_BYTES = 2**20
_STAGING = ".upload-"
# RFC 7578 forbids it in forms, and clients send it for names beyond ASCII, some without a plain name beside it
_EXTENDED_NAME = re.compile(rb""";\s*filename\*\s*=\s*"?([\w-]+)'[^']*'([^";\s]*)""", re.IGNORECASE)


@dataclass(frozen=True)
class FileField:
    """A field of a form that takes files.

    Attributes:
        max_files: more raise `too_many`, a BadField unless given.
        sink: takes the bytes as they arrive, instead of keeping them in memory.
        max_bytes: limit on one file; None if the limit on the body is enough.
        or_text: whether the content may also come as plain text, as a file without a name.
        sink_of: returns the sink of each file if several may come; they arrive one after the other.
    """

    max_files: int = 1
    too_many: Exception | None = None
    sink: Write | None = None
    max_bytes: int | None = None
    or_text: bool = False
    sink_of: Callable[[Part], Write] | None = None


@dataclass
class Part:
    """A file of a form; `name` is its field, `data` is empty where a sink takes the bytes, `size` counts them all."""

    filename: str = ""
    data: bytearray = field(default_factory=bytearray)
    name: str = ""
    size: int = 0


@dataclass
class Form:
    """The content of a multipart body: text fields by name, and files."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[Part] = field(default_factory=list)

    def first(self, name: str) -> Part | None:
        """Return the first file of a field, None if it has none."""
        return next((part for part in self.files if part.name == name), None)


async def read_form(request: Request, file_fields: Mapping[str, FileField]) -> Form:
    """Read a request's multipart body. An empty file without a name, as browsers send it, counts as no file.

    Args:
        file_fields: the fields that take files, by name.

    Raises:
        UnsupportedMedia: the body is not a multipart form.
        BadField: a field came twice or is too long, or a file came in a text field.
        BodyTooLarge: a file is longer than its field allows.
        BadRequest: the body is malformed, or ends early.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMedia(
            f"the body is {kind.decode('latin-1')[:80] or 'of no media type'}; "
            "send multipart/form-data with its boundary, as `curl -F` does"
        )
    try:
        reader = _Reader(options[b"boundary"], file_fields)
    except FormParserError as error:
        raise BadRequest(f"the boundary of the multipart body is malformed: {error}") from error
    async for chunk in request.stream():
        await reader.feed(chunk)
    return await reader.finish()


def check_fields(fields: Iterable[str], known: Sequence[str], files: str) -> None:
    """Raise BadField for a field that is not known; `files` names those that take files."""
    for name in fields:
        if name not in known:
            raise BadField(name, f"unknown field {name[:80]!r}; known are {files}, {', '.join(known)}")


class _Reader:
    def __init__(self, boundary: bytes, file_fields: Mapping[str, FileField]) -> None:
        self._form = Form()
        self._file_fields = file_fields
        self._counts: Counter[str] = Counter()  # files by field
        self._unsent: deque[tuple[Part, Write]] = deque()  # files with bytes that their sink has not taken
        self._part = Part()
        self._field: FileField | None = None  # of the current part; None for text
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
        self._form.files = [part for part in self._form.files if part.filename or part.size]
        return self._form

    async def _flush(self, above_bytes: int) -> None:
        while self._unsent:
            part, sink = self._unsent[0]
            complete = part is not self._part
            if len(part.data) > (0 if complete else above_bytes):
                data = bytes(part.data)
                part.data.clear()
                await sink(data)
            if not complete:
                return
            self._unsent.popleft()

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[name.decode("latin-1").lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        disposition = self._headers.get("content-disposition", b"")
        _, options = parse_options_header(disposition)
        if found := _EXTENDED_NAME.search(disposition):
            options[b"filename"] = _decode_extended(found[1], found[2])
        if b"name" not in options:
            raise BadRequest("a part of the multipart body has no name; name each field")
        name = _text(options[b"name"])[:80]
        self._part = Part(_text(options.get(b"filename", b"")), name=name)
        self._field = self._file_fields.get(name)
        if b"filename" in options or (self._field and self._field.or_text):
            self._begin_file(name)
        elif self._field:
            raise BadField(name, f"{name} came as text; send the file itself (curl -F {name}=@FILE)")
        elif name in self._form.fields:
            raise BadField(name, f"the field {name!r} came twice; send it once")
        elif len(self._form.fields) >= MAX_FIELDS:
            raise BadRequest(f"the form has more than {MAX_FIELDS} fields; send fewer")

    def _begin_file(self, name: str) -> None:
        if self._field is None:
            fields = " or ".join(map(repr, self._file_fields))
            raise BadField(name, f"a file came in the field {name!r}; send files in {fields}")
        if self._counts[name] >= self._field.max_files:
            raise self._field.too_many or BadField(name, f"more than one file came in the field {name}; send one")
        self._counts[name] += 1
        self._form.files.append(self._part)
        sink = self._field.sink_of(self._part) if self._field.sink_of else self._field.sink
        if sink is not None:
            self._unsent.append((self._part, sink))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.size += end - start
        max_bytes = self._field.max_bytes if self._field else MAX_FIELD_BYTES
        if max_bytes is not None and part.size > max_bytes:
            detail = f"the field {part.name!r} has more than {max_bytes} bytes; send less"
            raise BodyTooLarge(f"the file in {detail}") if self._field else BadField(part.name, detail)
        part.data += data[start:end]

    def _on_part_end(self) -> None:
        if self._field is None:
            self._form.fields[self._part.name] = _text(bytes(self._part.data))

    def _on_end(self) -> None:
        self._ended = True


def _decode_extended(charset: bytes, value: bytes) -> bytes:
    """Return a name in the extended form of RFC 5987 as UTF-8."""
    plain = unquote_to_bytes(value)
    try:
        return plain.decode(charset.decode("ascii")).encode()
    except (LookupError, UnicodeError):
        return plain


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


class UploadFolder:
    """The files of one request. An async context manager that removes them at its end unless they are kept.

    Args:
        path: the folder; created with its first file.
        in_thread: runs a blocking function in a thread.
    """

    def __init__(self, path: Path, in_thread: InThread) -> None:
        self.path = path
        self._in_thread = in_thread
        self._kept = False

    @classmethod
    def create_in(cls, root: Path, in_thread: InThread) -> Self:
        """Return a new folder in `root`, on whose disk the files will be moved to their place."""
        return cls(root / f"{_STAGING}{uuid.uuid4().hex}", in_thread)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._kept:
            with suppress(FileNotFoundError):  # no file arrived, or the folder was moved to its place
                await self._in_thread(shutil.rmtree, self.path)

    def file(self, name: str, max_bytes: int) -> UploadFile:
        """Return a file of the folder to write what arrives to."""
        return UploadFile(self.path / name, self._in_thread, max_bytes)

    async def put(self, name: str, write: Callable[..., Any], *arguments: Any) -> None:
        """Create a file of the folder by `write(path, *arguments)`."""

        def put() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            write(self.path / name, *arguments)

        await self._in_thread(put)

    async def sync(self) -> None:
        """Fsync the files and the folder, so that they outlive a power cut."""

        def sync_all() -> None:
            if self.path.exists():
                for path in (*self.path.iterdir(), self.path):
                    sync(path)

        await self._in_thread(sync_all)

    def keep(self) -> None:
        """Do not delete the files when the request ends."""
        self._kept = True


class UploadFile:
    """A file that is created with its first bytes.

    Attributes:
        max_bytes: the reader of its :attr:`field` enforces it.
        name: the sender's name for it; empty if unknown.
        is_empty: whether no byte has arrived.
    """

    def __init__(self, path: Path, in_thread: InThread, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.name = ""
        self.is_empty = True
        self._in_thread = in_thread

    @property
    def field(self) -> FileField:
        """The field of a form whose file is written here."""
        return FileField(sink=self.write, max_bytes=self.max_bytes)

    async def write(self, data: bytes) -> None:
        """Append bytes; other readers see them when this returns."""
        await self._in_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        if self.is_empty:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.is_empty = False
        with self.path.open("ab") as file:
            file.write(data)


def remove_stale_uploads(root: Path, stale_s: float) -> list[str]:
    """Remove the upload folders that a killed gateway left in `root`, once untouched for `stale_s`.

    Returns:
        Their names.
    """
    names = [
        name
        for name in folder_names(root)
        if name.startswith(_STAGING) and seconds_since_change(root / name) >= stale_s
    ]
    for name in names:
        shutil.rmtree(root / name, ignore_errors=True)
    return names


def seconds_since_change(folder: Path) -> float:
    """Return the seconds since anything in a folder was written; 0 if it is changing right now."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return 0.0
