"""Fuzz one reader by coverage: ``python -m tests.fuzz.targets archive -max_total_time=300`` (libFuzzer's options).

Files of HDF5 are left out: libraries in C read them, in a process of their own that may crash.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import atheris

_INSTRUMENTED = ("csv", "gzip", "json", "tarfile", "zipfile", "model", "service.contract", "service.versions")

with atheris.instrument_imports(include=list(_INSTRUMENTED), enable_loader_override=False):
    from model.scoring.label_files import parse_labels
    from model.scoring.labels import LabelsError
    from service.contract.errors import PPLError
    from service.contract.jobs.files import read_prior
    from service.contract.media.archives import check_archive, iter_media
    from service.contract.media.boxes import parse_box_file
    from service.contract.versions.store import VersionStore
    from service.versions.import_version import import_version

from tests.support.seed_files import packed, seeds  # noqa: E402 - after what is instrumented

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def read_archive(data: bytes) -> None:
    path = _FOLDER / "archive"
    path.write_bytes(data)
    with suppress(PPLError):
        check_archive(path, mode="stills")
        for _ in iter_media(path):
            pass


def read_labels(data: bytes) -> None:
    if not data.startswith(b"\x89HDF"):
        with suppress(LabelsError):
            parse_labels(data)


def read_boxes(data: bytes) -> None:
    with suppress(PPLError):
        parse_box_file(data)


def read_given_prior(data: bytes) -> None:
    with suppress(PPLError):
        read_prior(data)


def read_version(data: bytes) -> None:
    """Replace one file of a version by the data, with the right checksum; a zero first takes the data as the zip."""
    which, content = data[:1], data[1:]
    path = _FOLDER / "version"
    if which in (b"", b"\0"):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(BytesIO(seeds()["version/zip"])) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        names = sorted(files.keys() - {"manifest.json"})
        files[names[which[0] % len(names)]] = content
        path.write_bytes(packed(files))
    try:
        with suppress(PPLError):
            import_version(VersionStore(_FOLDER), path, _FOLDER / "unpacked", "dog", 2**28)
    finally:
        for name in ("unpacked", "categories"):
            shutil.rmtree(_FOLDER / name, ignore_errors=True)


def version_parts() -> list[bytes]:
    """Return the data that :func:`read_version` takes for each file of a version as it is."""
    with zipfile.ZipFile(BytesIO(seeds()["version/zip"])) as archive:
        names = sorted(set(archive.namelist()) - {"manifest.json"})
        # the weights are long, and their header is in other fuzzers' reach: a mutation seldom hits it
        return [bytes([len(names) + at]) + archive.read(name)[:20_000] for at, name in enumerate(names)]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "archive": read_archive,
    "labels": read_labels,
    "boxes": read_boxes,
    "prior": read_given_prior,
    "version": read_version,
}


def main() -> None:
    """Write the seeds to a corpus and fuzz."""
    target, *options = sys.argv[1:]
    corpus = _FOLDER / "corpus"
    corpus.mkdir()
    parts = version_parts() if target == "version" else []
    given = [data for name, data in seeds().items() if name.startswith(f"{target}/") and len(data) < 100_000]
    for number, data in enumerate([*given, *parts]):
        (corpus / str(number)).write_bytes(data)
    random.seed(0)
    limits = ["-timeout=20", "-rss_limit_mb=4096", "-max_len=100000", f"-artifact_prefix={Path.cwd()}/"]
    # an option given later wins
    atheris.Setup([sys.argv[0], str(corpus), *limits, *options], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
