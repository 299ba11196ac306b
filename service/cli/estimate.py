"""``ppl estimate``: the poses in pictures, as a table, drawn, or in another program's format."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from service.client import Client, Estimate, InputError, png_bytes
from service.client.types import FailedPicture
from service.client.uploads import list_pictures, printable_name, with_unique_names
from service.contract.media.videos import is_video_name

from .estimates import finish, show_background
from .options import URL, AsJson, Category, Url, Version, write_file
from .output import console as output


class PoseFormat(StrEnum):
    """What poses can be printed as."""

    COCO = "coco"
    CSV = "csv"
    JSONL = "jsonl"


class More(StrEnum):
    """What JSON can hold beside the keypoints."""

    CODES = "codes"
    TRAJECTORY = "trajectory"


def estimate(
    category: Category,
    images: Annotated[
        list[Path], typer.Argument(help="Pictures (JPEG, PNG, WebP, BMP, TIFF), folders of them, or one video.")
    ],
    format: Annotated[
        PoseFormat | None,
        typer.Option(help="Print the poses as a COCO keypoints data set, DeepLabCut's table, or JSON lines."),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.png", help="Write the picture with its pose drawn; several poses get numbers: OUT-1.png."
        ),
    ] = None,
    link_map: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Write the links that the model drew; numbers as above.")
    ] = None,
    refine_steps: Annotated[int, typer.Option(min=0, max=10, help="Rounds of iterative refinement.")] = 0,
    marks: Annotated[
        str | None, typer.Option("--landmarks", metavar="NAME", help="Landmarks of the version to tell too.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Where the thing is in the one picture, or in each frame of the video, in pixels; repeatable.",
        ),
    ] = None,
    boxes_file: Annotated[
        Path | None,
        typer.Option(
            "--boxes",
            metavar="FILE.json",
            help="The same of several pictures: a JSON list with \\[x, y, w, h], a list of such, or null for each.",
        ),
    ] = None,
    more: Annotated[
        list[More] | None, typer.Option("--include", help="What the JSON shall hold of each pose too; repeatable.")
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
        images = _pictures(images)
        video = images[0] if len(images) == 1 and is_video_name(images[0].name) else None
        if every != 1 and not video:
            raise InputError("--every says which frames of a video to take, and pictures came; leave it out")
        drawn = [(kind, path) for kind, path in (("overlay", overlay), ("link_map", link_map)) if path]
        if (video or background) and drawn:
            option = drawn[0][0].replace("_", "-")
            raise InputError(f"--{option} draws on pictures that are waited for, not on videos or in the background")
        for _, out in drawn:
            if out.name in ("", "..") or out.is_dir():
                raise InputError(f"{out} is no name of a file to draw into")
        if len(drawn) == 2 and overlay == link_map:
            raise InputError(f"--overlay and --link-map both name {overlay}; give each a file of its own")
        boxes = _boxes(box, boxes_file, len(images))
        if video and boxes is not None and len(boxes) != 1:
            raise InputError(
                f"{boxes_file} has {len(boxes)} entries; of a video it has one, which holds for every frame"
            )
        if more and format is None and not (as_json or background):
            raise InputError("--include says what the JSON shall hold; it needs --json or --format jsonl")
        include = [str(kind) for kind in more or ()]
        asked: dict[str, Any] = {"version": version, "refine_steps": refine_steps, "include": include}
        if background or (video and format in (PoseFormat.COCO, PoseFormat.CSV)):
            wanted = "native" if format in (None, PoseFormat.JSONL) else str(format)
            pictures = [] if video else with_unique_names(images)
            asked |= {"boxes": boxes, "landmarks": marks, "format": wanted}
            begun = client.estimate_async(category, pictures, video, every, **asked)
            if background:
                show_background(begun, as_json)
                return
            finish(client, begun.id, as_json)
        elif video:
            asked |= {"box": boxes[0] if boxes else None, "landmarks": marks}
            _print_frames(client, category, video, every, asked, as_json or format is not None)
        elif format is PoseFormat.JSONL and not drawn:
            _print_lines(client, category, images, asked | {"boxes": boxes, "landmarks": marks})
        elif format:
            placeless = {"overlays": overlay, "link maps": link_map, "landmarks": marks, "--include": include}
            for name, given in placeless.items():
                if given:
                    raise InputError(f"--format {format} has no place for {name}")
            text = client.estimate_as(format.value, category, with_unique_names(images), version, refine_steps, boxes)
            print(text, end="" if text.endswith("\n") else "\n")
        else:
            asked["include"] = [*include, *(kind for kind, _ in drawn)]
            found = client.estimate(category, images, boxes=boxes, landmarks=marks, **asked)
            written = [path for kind, out in drawn for path in _write_drawn(found, kind, out)]
            if as_json:
                output.print_json(found)
                return
            output.show_estimate(found, [printable_name(path) for path in images])
            for path in written:
                output.out.print(f"written: {escape(printable_name(path))}")


def _pictures(given: list[Path]) -> list[Path]:
    """The files, and those in folders."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = list(list_pictures(path, videos=True))
        videos = [file for file in inside if is_video_name(file.name)]
        if len(videos) == len(inside):
            raise InputError(f"the folder {path} holds no picture")
        if videos:
            names = ", ".join(printable_name(file) for file in videos[:3]) + (", …" if len(videos) > 3 else "")
            output.err.print(f"[yellow]passed over, a video is given by itself: {escape(names)}[/]")
        found += [file for file in inside if file not in videos]
    return found


def _boxes(texts: list[str] | None, file: Path | None, count: int) -> list[Any] | None:
    """An entry for each picture, as the server takes them, which looks at what is in them."""
    if texts and file:
        raise InputError("both --box and --boxes came; one of them says where to look")
    if file:
        try:
            entries = json.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise InputError(f"can't read {file}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON: {str(error)[:100]}") from error
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            raise InputError(
                f"{file} is not a list with [x, y, width, height], a list of such, or null for each picture"
            )
        return entries
    if not texts:
        return None
    if count > 1:
        raise InputError(f"--box is for one picture and {count} came; name a file with --boxes")
    found = [_box(text) for text in texts]
    return found if len(found) == 1 else [found]


def _is_entry(entry: Any) -> bool:
    return entry is None or _is_box(entry) or (isinstance(entry, list) and bool(entry) and all(map(_is_box, entry)))


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(number) in (int, float) for number in value)


def _box(text: str) -> list[float]:
    try:
        x, y, width, height = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--box is {text[:80]!r}; it must be four numbers, as in --box 10,20,200,150") from None
    return [x, y, width, height]


def _print_lines(client: Client, category: str, images: list[Path], asked: dict[str, Any]) -> None:
    failed = 0
    for found in client.estimate_lines(category, images, **asked):
        line = {"image": printable_name(images[found.index]), **found.model_dump(mode="json", exclude_defaults=True)}
        print(json.dumps(line), flush=True)
        failed += isinstance(found, FailedPicture)
    if failed:
        raise typer.Exit(1)


def _print_frames(client: Client, category: str, video: Path, every: int, asked: dict[str, Any], as_json: bool) -> None:
    """A line for each frame, as it is found."""
    failed = 0
    for found in client.estimate_video(category, video, every, **asked):
        failed += isinstance(found, FailedPicture)
        if as_json:
            print(json.dumps(found.model_dump(mode="json", exclude_defaults=True)), flush=True)
        elif isinstance(found, FailedPicture):
            output.err.print(f"[red]{escape(found.error.detail)}[/]")
        else:
            score = sum(point.score for point in found.keypoints) / len(found.keypoints)
            surprise = "" if found.surprise is None else f", surprise {found.surprise:.2f}"
            where = "" if found.box is None else f", box {found.box}"
            output.out.print(f"frame {found.frame} at {found.time_s:.3f} s{where}: mean score {score:.2f}{surprise}")
    if failed:
        raise typer.Exit(1)


def _write_drawn(found: Estimate, kind: str, out: Path) -> list[Path]:
    """What was drawn of each pose, into files with its number where there are several."""
    pictures = [getattr(image, kind) for image in found.images]
    several = len(pictures) > 1
    names = [out.with_name(f"{out.stem}-{n + 1}{out.suffix}") if several else out for n in range(len(pictures))]
    return [write_file(name, png_bytes(picture)) for name, picture in zip(names, pictures, strict=True) if picture]
