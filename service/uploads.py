"""What the client sends: picture files, and a folder packed into one archive."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from .client_errors import InputError
from .contract.pictures import is_picture_name

Picture = str | os.PathLike[str] | bytes


@contextmanager
def archive_of(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """An archive's name and open file: the file itself, or a temporary zip of a folder's pictures.

    Raises:
        InputError: there is no such file or folder, it can't be read, or holds no picture.
    """
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                yield path.name, file
            return
        with tempfile.TemporaryFile(prefix="ppl-") as file:
            _pack(path, file)
            file.seek(0)
            yield f"{path.resolve().name}.zip", file
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def pictures_in(folder: Path) -> Iterator[Path]:
    """The pictures of a folder and the folders below it by name; hidden ones are left out."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(files):
            if is_picture_name(name) and not name.startswith("."):
                yield Path(here, name)


def picture_part(picture: Picture, index: int, stack: ExitStack) -> tuple[str, IO[bytes] | bytes]:
    """A file name and content for a form; an opened file is closed with the stack.

    Raises:
        InputError: there is no such file, or it can't be read.
    """
    if isinstance(picture, bytes):
        return f"image-{index}", picture
    path = Path(picture)
    try:
        return path.name, stack.enter_context(path.open("rb"))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def _pack(folder: Path, file: IO[bytes]) -> None:
    count = 0
    # pictures are compressed already: stored as they are
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for picture in pictures_in(folder):
            archive.write(picture, picture.relative_to(folder).as_posix())
            count += 1
    if not count:
        raise InputError(f"{folder} holds no picture (JPEG, PNG, WebP, BMP or TIFF)")
