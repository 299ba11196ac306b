"""``ppl estimate``: the poses in pictures, as a table, drawn, or in another program's format."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from . import cli_output as output
from .cli_estimates import finish, show_background
from .cli_options import URL, AsJson, Category, Url, Version
from .client import Client, InputError, png_bytes
from .client_types import FailedPicture
from .contract.videos import is_video_name
from .uploads import shown_name


class PoseFormat(StrEnum):
    """What poses can be printed as."""

    COCO = "coco"
    CSV = "csv"
    JSONL = "jsonl"


def estimate(
    category: Category,
    images: Annotated[list[Path], typer.Argument(help="Pictures (JPEG, PNG, WebP, BMP, TIFF), or one video.")],
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
    every: Annotated[int, typer.Option(min=1, help="Of a video: the first frame and each so-many-th after it.")] = 1,
    background: Annotated[
        bool, typer.Option("--background", help="Return at once; `ppl estimates show ID` has the poses later.")
    ] = False,
    version: Version = None,
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Estimate the poses in pictures, or in the frames of a video."""
    with output.errors_shown(as_json), Client(url) as client:
        video = images[0] if len(images) == 1 and is_video_name(images[0].name) else None
        if (video or background) and overlay:
            raise InputError("--overlay draws on pictures that are waited for, not on videos or in the background")
        if background or (video and format in (PoseFormat.COCO, PoseFormat.CSV)):
            wanted = "native" if format in (None, PoseFormat.JSONL) else str(format)
            pictures: list[Path] = [] if video else images
            begun = client.estimate_async(
                category, pictures, video, every, version, refine_steps, landmarks=marks, format=wanted
            )
            if background:
                show_background(begun, as_json)
                return
            finish(client, begun.id, as_json)
            return
        if video:
            _print_frames(client, category, video, every, version, refine_steps, marks, as_json or format is not None)
            return
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
        output.show_estimate(found, [shown_name(path) for path in images])
        for path in written:
            output.out.print(f"written: {escape(shown_name(path))}")


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
        line = {"image": shown_name(images[found.index]), **found.model_dump(mode="json", exclude_defaults=True)}
        print(json.dumps(line), flush=True)
        failed += isinstance(found, FailedPicture)
    if failed:
        raise typer.Exit(1)


def _print_frames(
    client: Client,
    category: str,
    video: Path,
    every: int,
    version: str | None,
    refine_steps: int,
    marks: str | None,
    as_json: bool,
) -> None:
    """A line for each frame, as it is found."""
    failed = 0
    for found in client.estimate_video(category, video, every, version, refine_steps, landmarks=marks):
        failed += isinstance(found, FailedPicture)
        if as_json:
            print(json.dumps(found.model_dump(mode="json", exclude_defaults=True)), flush=True)
        elif isinstance(found, FailedPicture):
            output.err.print(f"[red]{escape(found.error.detail)}[/]")
        else:
            score = sum(point.score for point in found.keypoints) / len(found.keypoints)
            surprise = "" if found.surprise is None else f", surprise {found.surprise:.2f}"
            output.out.print(f"frame {found.frame} at {found.time_s:.3f} s: mean score {score:.2f}{surprise}")
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
