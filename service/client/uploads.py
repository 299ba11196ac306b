"""Uploads: pictures as form parts, folders packed into one archive, and the form of a training."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from service.contract.jobs.job import Activate
from service.contract.media.video_kinds import KINDS, is_video_name

from .errors import InputError

AnyPath = str | os.PathLike[str]
PictureFile = AnyPath | bytes
STDIN = "-"
Picture = PictureFile | tuple[str, PictureFile]  # the tuple gives it a name

_NO_MEDIA = f"no picture (JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF) and no video ({KINDS})"


@contextmanager
def open_archive(paths: Sequence[Path]) -> Iterator[tuple[str, IO[bytes]]]:
    """Open a single file, or pack folders and several files into a temporary zip; yield its name and the open file.

    Raises:
        InputError: a path does not exist or can't be read, there is no picture, or two have the same name.
    """
    try:
        if len(paths) == 1 and not paths[0].is_dir():
            with open_file(paths[0]) as file:
                yield _part_name(paths[0]), file
            return
        with tempfile.TemporaryFile(prefix="ppl-") as file:
            _pack(paths, file)
            file.seek(0)
            name = printable_name(paths[0].resolve().name) if len(paths) == 1 else "pictures"
            yield f"{name}.zip", file
    except OSError as error:
        raise InputError(f"can't read {error.filename or paths[0]}: {error.strerror or error}") from error


def list_pictures(folder: Path, *, videos: bool = False) -> Iterator[Path]:
    """Yield the pictures, and optionally the videos, below a folder by name; skip hidden files and folders."""
    from service.contract.media.pictures import is_picture_name  # not at the top: it loads Pillow and NumPy

    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(files):
            if (is_picture_name(name) or (videos and is_video_name(name))) and not name.startswith("."):
                yield Path(parent, name)


def list_named_pictures(paths: Sequence[AnyPath]) -> list[tuple[str, Path]]:
    """Return files under their names and the pictures of folders under their paths below the folder."""
    named = []
    for path in map(Path, paths):
        if path.is_dir():
            named += [(picture.relative_to(path).as_posix(), picture) for picture in list_pictures(path)]
        else:
            named.append((path.name, path))
    return named


def name_uniquely(paths: Sequence[Path]) -> list[Picture]:
    """Return files under their own names or, if two are the same, under their paths below the common folder."""
    if len({path.name for path in paths}) == len(paths):
        return list(paths)
    absolute = [path.absolute() for path in paths]
    try:
        common = os.path.commonpath([path.parent for path in absolute])
    except ValueError:  # on different drives
        return [(printable_name(path.as_posix()), path) for path in absolute]
    return [(printable_name(path.relative_to(common).as_posix()), path) for path in absolute]


def picture_part(picture: Picture, index: int, stack: ExitStack) -> tuple[str, IO[bytes] | bytes]:
    """Return a picture's name and content as a form part; see :func:`file_part`."""
    if isinstance(picture, tuple):
        name, picture = picture
        return name, picture_part(picture, index, stack)[1]
    return (f"image-{index}", picture) if isinstance(picture, bytes) else file_part(picture, stack)


def file_part(path: AnyPath, stack: ExitStack) -> tuple[str, IO[bytes]]:
    """Return a file's name and content as a form part; the stack closes the file. Raises InputError."""
    try:
        return _part_name(path), stack.enter_context(open_file(path))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def is_pipe(path: AnyPath) -> bool:
    """Return whether a path is standard input ("-"), or another thing that can be read once, from its start."""
    path = Path(path)
    return str(path) == STDIN or path.is_fifo() or path.is_char_device() or path.is_socket()


def open_file(path: AnyPath) -> IO[bytes]:
    """Open a file. What a pipe holds is copied first: a form needs its length, and a retry its start. Raises OSError.

    "-" is standard input.
    """
    if not is_pipe(path):
        return Path(path).open("rb")
    copy = tempfile.TemporaryFile(prefix="ppl-")  # noqa: SIM115  the caller closes it
    is_stdin = str(path) == STDIN
    with open(sys.stdin.fileno() if is_stdin else path, "rb", closefd=not is_stdin) as pipe:
        shutil.copyfileobj(pipe, copy)
    copy.seek(0)
    return copy


def read_text(path: AnyPath) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with its mark. Raises InputError."""
    from model.scoring.label_tables import decode_text  # not at the top: it loads NumPy

    try:
        with open_file(path) as file:
            return decode_text(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error


def _part_name(path: AnyPath) -> str:
    return "stdin" if str(path) == STDIN else printable_name(Path(path).name)


def training_settings(settings: Mapping[str, Any] | None, activate: Activate) -> dict[str, str]:
    """Return the form fields of a training job's settings; ``activate`` is true by default."""
    settings = {**({} if activate is True else {"activate": activate}), **(settings or {})}
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()}


def training_files(
    dataset: str | None,
    labels: AnyPath | None,
    boxes: AnyPath | None,
    prior: AnyPath | Mapping[str, Any] | None,
    stack: ExitStack,
) -> dict[str, Any]:
    """Return the form parts of a training job besides its archive; the stack closes the files."""
    files: dict[str, Any] = {}
    if dataset is not None:
        files["dataset"] = (None, dataset)  # a part without a file name is a plain field
    for name, path in (("labels", labels), ("boxes", boxes)):
        if path is not None:
            files[name] = file_part(path, stack)
    if isinstance(prior, Mapping):
        files["prior"] = ("prior.json", json.dumps(prior).encode())
    elif prior is not None:
        files["prior"] = file_part(prior, stack)
    return files


def printable_name(path: Path | str) -> str:
    """Return a path as valid UTF-8; other bytes in it are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def _pack(paths: Sequence[Path], file: IO[bytes]) -> None:
    names = set()
    # pictures and videos are compressed already, so they are stored as they are
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            is_folder = path.is_dir()
            for picture in list_pictures(path, videos=True) if is_folder else [path]:
                name = picture.relative_to(path).as_posix() if is_folder else path.name
                if is_folder and len(paths) > 1:
                    name = f"{path.resolve().name}/{name}"  # resolved, as the folder may be given as "."
                if name in names:
                    raise InputError(f"two of the files are called {name}; rename one, or send their common folder")
                names.add(name)
                _add_file(archive, picture, name)
    if not names:
        raise InputError(f"{paths[0]} holds {_NO_MEDIA}" if len(paths) == 1 else f"the folders hold {_NO_MEDIA}")


def _add_file(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """Add a file without its time, so that the same pictures give the same archive, which a server keeps only once."""
    info = zipfile.ZipInfo(printable_name(name))
    with open_file(path) as source:
        info.file_size = os.fstat(source.fileno()).st_size  # ZipFile decides by it whether to use ZIP64
        with archive.open(info, "w") as member:
            shutil.copyfileobj(source, member)
