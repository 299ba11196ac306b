"""``ppl backup`` and ``ppl restore``. They work on the files, so they run on the server's machine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.contract.durable_files import atomic_write
from service.contract.errors import PPLError

from .commands import AsJson, read_settings
from .console import fail, make_problem, say, show
from .keys import DataRoot

if TYPE_CHECKING:
    from service.contract.settings import CommonSettings

_DRAFT = ".backup-"


def backup(
    file: Annotated[Path, typer.Argument(help="The tar to write, replaced when it is complete; - is stdout.")],
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Back up versions, datasets, finished estimates, keys and the webhook secret, while the platform runs.

    Run it on the server's machine. Training jobs are not in it. The file holds a secret: keep it as one.
    """
    from . import backup_tar  # not at the top: the other commands start sooner without it

    with (
        _reporting("backup_failed", as_json, data_root) as settings,
        tempfile.TemporaryDirectory(prefix=_DRAFT, dir=settings.data_root) as draft,
    ):
        backup_tar.gather(settings, Path(draft))
        if str(file) == "-":
            backup_tar.write_tar(Path(draft), sys.stdout.buffer)
            return
        with atomic_write(file, 0o600) as stream:
            manifest = backup_tar.write_tar(Path(draft), stream)
        size = file.stat().st_size
        facts = {"file": str(file), "files": len(manifest.files), "size_bytes": size}
        show(facts, as_json, lambda _: say(f"{file}: {len(manifest.files)} files, {size / 2**20:.1f} MiB"))


def restore(
    file: Annotated[Path, typer.Argument(help="A tar of `ppl backup`; - is stdin.")],
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup. The platform may run; what is there already stays, and aliases move as they were.

    Every file is checked before anything is restored.
    """
    from . import backup_tar

    with (
        _reporting("restore_failed", as_json, data_root) as settings,
        tempfile.TemporaryDirectory(prefix=_DRAFT, dir=settings.data_root) as draft,
    ):
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as stream:
            backup_tar.unpack(stream, Path(draft))
        counts = backup_tar.restore(settings, Path(draft))
        text = ", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing"
        show(dict(counts), as_json, lambda _: say(f"restored: {text}"))


@contextmanager
def _reporting(code: str, as_json: bool, data_root: Path | None) -> Iterator[CommonSettings]:
    settings = read_settings(data_root, as_json)
    try:
        settings.data_root.mkdir(parents=True, exist_ok=True)
        yield settings
    except PPLError as error:
        raise fail(make_problem(str(error.code), error.detail), as_json) from error
    except (OSError, ValueError) as error:
        raise fail(make_problem(code, str(error)), as_json) from error
