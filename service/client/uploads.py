"""What the client sends: picture files, and a folder packed into one archive."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from service.contract.media.pictures import is_picture_name
from service.contract.media.videos import is_video_name

from .errors import InputError

PictureFile = str | os.PathLike[str] | bytes
Picture = PictureFile | tuple[str, PictureFile]  # with the name to call it by

_NOTHING = "no picture (JPEG, PNG, WebP, BMP or TIFF) and no video (MP4, MOV, AVI, MKV or WebM)"


@contextmanager
def archive_of(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """An archive's name and open file: the file itself, or a temporary zip of a folder's pictures and videos.

    Raises:
        InputError: there is no such file or folder, it can't be read, or holds no picture.
    """
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                yield shown_name(path.name), file
            return
        with tempfile.TemporaryFile(prefix="ppl-") as file:
            _pack(path, file)
            file.seek(0)
            yield f"{shown_name(path.resolve().name)}.zip", file
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


@contextmanager
def archive_of_all(paths: Sequence[Path]) -> Iterator[tuple[str, IO[bytes]]]:
    """As :func:`archive_of`; several files and folders go into one temporary zip, each folder under its name."""
    if len(paths) == 1:
        with archive_of(paths[0]) as archive:
            yield archive
        return
    with tempfile.TemporaryFile(prefix="ppl-") as file:
        try:
            _pack_all(paths, file)
        except OSError as error:
            raise InputError(f"can't read {error.filename or 'the files'}: {error.strerror or error}") from error
        file.seek(0)
        yield "pictures.zip", file


def pictures_in(folder: Path, *, videos: bool = False) -> Iterator[Path]:
    """The pictures of a folder and the folders below it by name, and its videos if wanted; not the hidden ones."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(files):
            if (is_picture_name(name) or (videos and is_video_name(name))) and not name.startswith("."):
                yield Path(here, name)


def picture_part(picture: Picture, index: int, stack: ExitStack) -> tuple[str, IO[bytes] | bytes]:
    """A file name and content for a form; an opened file is closed with the stack. Raises as :func:`file_part`."""
    if isinstance(picture, tuple):
        name, picture = picture
        return name, picture_part(picture, index, stack)[1]
    return (f"image-{index}", picture) if isinstance(picture, bytes) else file_part(Path(picture), stack)


def told_apart(paths: Sequence[Path]) -> list[Picture]:
    """Files to send under their own names, or where two have the same, under their paths below the folder of all."""
    if len({path.name for path in paths}) == len(paths):
        return list(paths)
    whole = [path.absolute() for path in paths]
    try:
        above = os.path.commonpath([path.parent for path in whole])
    except ValueError:  # on several drives
        return [(shown_name(path.as_posix()), path) for path in whole]
    return [(shown_name(path.relative_to(above).as_posix()), path) for path in whole]


def file_part(path: Path, stack: ExitStack) -> tuple[str, IO[bytes]]:
    """A file's name and content for a form; it is closed with the stack.

    Raises:
        InputError: there is no such file, or it can't be read.
    """
    try:
        return shown_name(path.name), stack.enter_context(path.open("rb"))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def shown_name(path: Path | str) -> str:
    """A path as text that can be sent and printed: what in it is no text is replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def _pack(folder: Path, file: IO[bytes]) -> None:
    count = 0
    # pictures and videos are compressed already: stored as they are
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for picture in pictures_in(folder, videos=True):
            _put(archive, picture, picture.relative_to(folder).as_posix())
            count += 1
    if not count:
        raise InputError(f"{folder} holds {_NOTHING}")


def _pack_all(paths: Sequence[Path], file: IO[bytes]) -> None:
    names = set()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            is_folder = path.is_dir()
            for picture in pictures_in(path, videos=True) if is_folder else [path]:
                # a folder may have been named as "."
                name = f"{path.resolve().name}/{picture.relative_to(path).as_posix()}" if is_folder else path.name
                if name in names:
                    raise InputError(f"two of the files are called {name}; rename one, or send their common folder")
                names.add(name)
                _put(archive, picture, name)
    if not names:
        raise InputError(f"the folders hold {_NOTHING}")


def _put(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """Add a file without its time: the same pictures make the same archive, which a server keeps once."""
    info = zipfile.ZipInfo(shown_name(name))
    with path.open("rb") as source:
        info.file_size = os.fstat(source.fileno()).st_size  # whether it needs the large format
        with archive.open(info, "w") as member:
            shutil.copyfileobj(source, member)
