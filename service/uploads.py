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
from .contract.videos import is_video_name

Picture = str | os.PathLike[str] | bytes


@contextmanager
def archive_of(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """An archive's name and open file: the file itself, or a temporary zip of a folder's pictures and videos.

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


def pictures_in(folder: Path, *, videos: bool = False) -> Iterator[Path]:
    """The pictures of a folder and the folders below it by name, and its videos if wanted; not the hidden ones."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(files):
            if (is_picture_name(name) or (videos and is_video_name(name))) and not name.startswith("."):
                yield Path(here, name)


def picture_part(picture: Picture, index: int, stack: ExitStack) -> tuple[str, IO[bytes] | bytes]:
    """A file name and content for a form; an opened file is closed with the stack. Raises as :func:`file_part`."""
    return (f"image-{index}", picture) if isinstance(picture, bytes) else file_part(Path(picture), stack)


def file_part(path: Path, stack: ExitStack) -> tuple[str, IO[bytes]]:
    """A file's name and content for a form; it is closed with the stack.

    Raises:
        InputError: there is no such file, or it can't be read.
    """
    try:
        return path.name, stack.enter_context(path.open("rb"))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def _pack(folder: Path, file: IO[bytes]) -> None:
    count = 0
    # pictures and videos are compressed already: stored as they are
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for picture in pictures_in(folder, videos=True):
            archive.write(picture, picture.relative_to(folder).as_posix())
            count += 1
    if not count:
        raise InputError(
            f"{folder} holds no picture (JPEG, PNG, WebP, BMP or TIFF) and no video (MP4, MOV, AVI, MKV or WebM)"
        )
