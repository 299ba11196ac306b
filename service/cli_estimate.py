"""``ppl estimate``: the poses in pictures, as a table, drawn, or in another program's format."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import cli_output as output
from .cli_options import URL, AsJson, Category, Url, Version
from .client import Client, InputError, png_bytes
from .client_types import FailedPicture


class PoseFormat(StrEnum):
    """What poses can be printed as."""

    COCO = "coco"
    CSV = "csv"
    JSONL = "jsonl"


def estimate(
    category: Category,
    images: Annotated[list[Path], typer.Argument(help="Pictures: JPEG, PNG, WebP, BMP or TIFF.")],
    format: Annotated[
        PoseFormat | None,
        typer.Option(help="Print the poses as a COCO keypoints data set, DeepLabCut's table, or JSON lines."),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(help="Write the picture with its pose drawn; of several pictures each gets a number: OUT-1.png."),
    ] = None,
    refine_steps: Annotated[int, typer.Option(min=0, max=10, help="Rounds of iterative refinement.")] = 0,
    marks: Annotated[
        str | None, typer.Option("--landmarks", metavar="NAME", help="Landmarks of the version to tell too.")
    ] = None,
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Estimate the poses in pictures."""
    with output.errors_shown(as_json), Client(url) as client:
        if format:
            if overlay or (marks and format is not PoseFormat.JSONL):
                raise InputError(f"--format {format} has no place for {'overlays' if overlay else 'landmarks'}")
            _print_as(client, format, category, images, version, refine_steps, marks)
            return
        include = ("overlay",) if overlay else ()
        found = client.estimate(category, images, version, refine_steps, include, landmarks=marks)
        written = []
        for image in found.images:
            if overlay and image.overlay:
                written.append(_write(_numbered(overlay, image.index, len(found.images)), png_bytes(image.overlay)))
        if as_json:
            output.print_json(found)
            return
        output.show_estimate(found, [str(path) for path in images])
        for path in written:
            output.out.print(f"written: {path}")


def _print_as(
    client: Client,
    chosen: PoseFormat,
    category: str,
    images: list[Path],
    version: str | None,
    refine_steps: int,
    marks: str | None,
) -> None:
    if chosen is not PoseFormat.JSONL:
        text = client.estimate_as(chosen.value, category, images, version, refine_steps)
        print(text, end="" if text.endswith("\n") else "\n")
        return
    failed = 0
    for found in client.estimate_lines(category, images, version, refine_steps, landmarks=marks):
        line = {"image": str(images[found.index]), **found.model_dump(mode="json", exclude_defaults=True)}
        print(json.dumps(line), flush=True)
        failed += isinstance(found, FailedPicture)
    if failed:
        raise typer.Exit(1)


def _write(path: Path, data: bytes) -> Path:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}") from error
    return path


def _numbered(path: Path, index: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}")
