"""Read multipart forms as they arrive: fields and small files into memory, uploads to their destination.

The framework's parser first writes each file to a temporary one: an archive of gigabytes would be written twice.
An upload goes to a folder on the data root's disk, which is removed unless something takes the files over.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

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


@dataclass(frozen=True)
class FileField:
    """A field of a form that takes files.

    Attributes:
        max_files: more raise `too_many()`, a BadField unless given.
        sink: takes the bytes as they arrive, instead of keeping them in memory.
        max_bytes: limit on one file; None where the limit on the body is enough.
        or_text: whether the content may also come as plain text, as a file without a name.
        sink_of: returns the sink of each file, where several may come; they arrive one after the other.
    """

    max_files: int = 1
    too_many: Callable[[], Exception] | None = None
    sink: Write | None = None
    max_bytes: int | None = None
    or_text: bool = False
    sink_of: Callable[[Part], Write] | None = None


@dataclass
class Part:
    """A file of a form; `name` is its field, `data` is empty where a sink takes the bytes, `size` counts them all."""

    filename: str
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


class _Reader:
    def __init__(self, boundary: bytes, file_fields: Mapping[str, FileField]) -> None:
        self._form = Form()
        self._file_fields = file_fields
        self._counts: Counter[str] = Counter()  # files by field
        self._unsent: deque[tuple[Part, Write]] = deque()  # files with bytes that their sink has not taken
        # of the current part; None for a text field
        self._part: Part | None = None
        self._name = ""
        self._data = bytearray()
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
        _, options = parse_options_header(self._headers.get("content-disposition"))
        if b"name" not in options:
            raise BadRequest("a part of the multipart body has no name; name each field")
        self._name, self._part = _text(options[b"name"])[:80], None
        self._data = bytearray()
        file_field = self._file_fields.get(self._name)
        if b"filename" in options or (file_field and file_field.or_text):
            self._begin_file(_text(options.get(b"filename", b"")))
        elif file_field:
            raise BadField(self._name, f"{self._name} came as text; send the file itself (curl -F {self._name}=@FILE)")
        elif self._name in self._form.fields:
            raise BadField(self._name, f"the field {self._name!r} came twice; send it once")
        elif len(self._form.fields) >= MAX_FIELDS:
            raise BadRequest(f"the form has more than {MAX_FIELDS} fields; send fewer")

    def _begin_file(self, filename: str) -> None:
        file_field = self._file_fields.get(self._name)
        if file_field is None:
            fields = " or ".join(map(repr, self._file_fields))
            raise BadField(self._name, f"a file came in the field {self._name!r}; send files in {fields}")
        if self._counts[self._name] >= file_field.max_files:
            if file_field.too_many is not None:
                raise file_field.too_many()
            raise BadField(self._name, f"more than one file came in the field {self._name}; send one")
        self._counts[self._name] += 1
        self._part = Part(filename, self._data, self._name)
        self._form.files.append(self._part)
        sink = file_field.sink_of(self._part) if file_field.sink_of else file_field.sink
        if sink is not None:
            self._unsent.append((self._part, sink))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part is None:
            if len(self._data) + end - start > MAX_FIELD_BYTES:
                raise BadField(self._name, f"the field {self._name!r} has more than {MAX_FIELD_BYTES} bytes; send less")
        else:
            self._part.size += end - start
            max_bytes = self._file_fields[self._name].max_bytes
            if max_bytes is not None and self._part.size > max_bytes:
                raise BodyTooLarge(
                    f"the file in the field {self._name!r} has more than {max_bytes} bytes; send a smaller one"
                )
        self._data += data[start:end]

    def _on_part_end(self) -> None:
        if self._part is None:
            self._form.fields[self._name] = _text(bytes(self._data))

    def _on_end(self) -> None:
        self._ended = True


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
        self._files: list[UploadFile] = []
        self._kept = False

    @classmethod
    def create_in(cls, root: Path, in_thread: InThread) -> Self:
        """Return a new folder in `root`, on whose disk the files will be moved to their place."""
        return cls(root / f"{_STAGING}{uuid.uuid4().hex}", in_thread)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._in_thread(self._close)

    def file(self, name: str, max_bytes: int) -> UploadFile:
        """Return a file of the folder to write what arrives to."""
        self._files.append(UploadFile(self.path / name, self._in_thread, max_bytes))
        return self._files[-1]

    async def put(self, name: str, write: Callable[..., Any], *arguments: Any) -> None:
        """Create a file of the folder by `write(path, *arguments)`."""

        def put() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            write(self.path / name, *arguments)

        await self._in_thread(put)

    async def flush(self) -> None:
        """Make all bytes that arrived visible to other readers."""
        await self._in_thread(self._flush)

    async def sync(self) -> None:
        """Flush the files and fsync them and the folder, so that they outlive a power cut."""
        await self._in_thread(self._sync)

    def keep(self) -> None:
        """Leave the files where they are."""
        self._kept = True

    def _flush(self) -> None:
        for file in self._files:
            file.flush()

    def _sync(self) -> None:
        self._flush()
        if self.path.exists():
            for path in (*self.path.iterdir(), self.path):
                sync(path)

    def _close(self) -> None:
        try:
            for file in self._files:
                file.close()
        finally:
            if not self._kept:
                with suppress(FileNotFoundError):  # no file arrived, or the folder was moved to its place
                    shutil.rmtree(self.path)


class UploadFile:
    """A file that is created with its first bytes.

    Attributes:
        max_bytes: the reader of its :attr:`field` enforces it.
        name: the sender's name for it; empty if unknown.
    """

    def __init__(self, path: Path, in_thread: InThread, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.name = ""
        self._in_thread = in_thread
        self._file: IO[bytes] | None = None

    @property
    def field(self) -> FileField:
        """The field of a form whose file is written here."""
        return FileField(sink=self.write, max_bytes=self.max_bytes)

    @property
    def is_empty(self) -> bool:
        """Whether no byte has arrived."""
        return self._file is None

    async def write(self, data: bytes) -> None:
        """Append bytes."""
        await self._in_thread(self._write, data)

    def flush(self) -> None:
        """Pass buffered bytes to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the file if it was created."""
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb")
        self._file.write(data)


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
