"""``ppl estimate``: poses as a table, as drawings, or in another program's format."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import Field, TypeAdapter, ValidationError
from rich.markup import escape

from service.client import APIError, Estimate, InputError, png_bytes
from service.client.batches import parse_line
from service.client.types import FailedPicture, ImageEstimate, PoseLine
from service.client.uploads import list_pictures, name_uniquely, printable_name, read_text
from service.contract.media.video_kinds import HEAD_BYTES, is_video, is_video_name

from .commands import PIPE_PREFIX, Align, Category, Locate, Session, Version, save_pipe
from .console import err, out, print_json, print_path, print_table, say, write_file
from .estimates import finish, print_background, wait

Box = tuple[float, float, float, float] | tuple[float, float, float, float, float]
_BOXES: TypeAdapter[list[Any]] = TypeAdapter(list[Box | Annotated[list[Box], Field(min_length=1)] | None])


# codes of a video that a request in the foreground can't have
_TOO_LONG = ("too_many_images", "body_too_large")


class More(StrEnum):
    """Optional members of a pose in JSON."""

    CODES = "codes"
    TRAJECTORY = "trajectory"
    LINKS = "links"


def estimate(
    session: Session,
    category: Category,
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Pictures (JPEG, PNG, WebP, AVIF, HEIC, BMP, TIFF), folders of them, or one video; - is stdin."
        ),
    ],
    format: Annotated[
        Literal["coco", "csv", "frames", "jsonl", "slp", "boxes"] | None,
        typer.Option(
            help="Print the poses as a COCO keypoints data set, DeepLabCut's table, the table of times and scores "
            "beside it, JSON lines, or SLEAP's file; or the boxes in which the object was found, as CSV for --boxes."
        ),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.png",
            help="Write the picture with its pose drawn; several poses get numbers: OUT-1.png. Of a video: OUT.mp4.",
        ),
    ] = None,
    link_map: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Write the link map that the model drew; numbered as above.")
    ] = None,
    refine_steps: Annotated[int, typer.Option(min=0, max=10, help="Rounds of iterative refinement.")] = 0,
    marks: Annotated[
        str | None, typer.Option("--landmarks", metavar="NAME", help="Landmark set whose points to return too.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,W,H[,ANGLE]",
            help="Box of the object in the one picture, or in each frame of the video, in pixels, and its heading in "
            "degrees clockwise from up; repeatable.",
        ),
    ] = None,
    boxes_file: Annotated[
        Path | None,
        typer.Option(
            "--boxes",
            metavar="FILE",
            help="Boxes of several pictures or frames: CSV (image,x,y,width,height), COCO or MegaDetector's JSON; or a "
            "JSON list with \\[x, y, w, h], a list of such, or null for each picture.",
        ),
    ] = None,
    locate: Locate = None,
    align: Align = None,
    max_animals: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a video of a fixed camera: find at most this number of animals by motion; each keeps its number.",
        ),
    ] = None,
    more: Annotated[
        list[More] | None,
        typer.Option("--include", help="Add this to each pose in the JSON; repeatable."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Of a video: take the first frame and every n-th after it.")] = 1,
    smooth: Annotated[
        str | None,
        typer.Option(
            metavar="FILTER",
            help="Of a video: smooth keypoints over time, with savgol or median; savgol:11 sets the window in frames.",
        ),
    ] = None,
    max_gap: Annotated[
        int | None, typer.Option(min=0, help="With --smooth: the longest gap in frames to fill; 5 by default.")
    ] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Return at once; `ppl estimates show ID` has the poses later.")
    ] = False,
    version: Version = None,
) -> None:
    """Estimate the poses in pictures, or in the frames of a video."""
    client = session.client
    images = _find_pictures(images)
    video = images[0] if len(images) == 1 and _is_video(images[0]) else None
    if every != 1 and not video:
        raise InputError("--every chooses frames of a video, and pictures came; leave it out")
    drawings = {kind: path for kind, path in (("overlay", overlay), ("link_map", link_map)) if path}
    drawn = drawings.pop("overlay", None) if video else None
    _check_drawings(drawings, waits_for_pictures=not (video or background or locate))
    if drawn:
        _check_drawings({"overlay": drawn}, waits_for_pictures=True)
    if not video and (smooth or max_gap is not None or max_animals is not None):
        raise InputError("--smooth, --max-gap and --max-animals are for a video, and pictures came; leave them out")
    boxes = _read_boxes(box, save_pipe(boxes_file) if boxes_file else None, len(images))
    if video and isinstance(boxes, list) and len(boxes) != 1:
        raise InputError(f"{boxes_file} has {len(boxes)} entries; a video takes one, used for every frame")
    if more and format is None and not (session.as_json or background):
        raise InputError("--include adds to the JSON output; it needs --json or --format jsonl")
    include: list[str] = [*(more or ()), *drawings]
    in_background: dict[str, Any] = {"boxes": boxes, "locate": locate, "smooth": smooth, "max_gap": max_gap}
    options: dict[str, Any] = {"version": version, "refine_steps": refine_steps, "landmarks": marks, "include": include}
    options["align"] = align
    of_video: dict[str, Any] = {"max_animals": max_animals} if video else {}
    if format == "slp" and sys.stdout.isatty() and not background:
        raise InputError("--format slp writes a binary file; send it to one, as in --format slp > poses.slp")
    of_one_answer = format in ("frames", "slp", "boxes") or (locate and not video)
    if background or of_one_answer or (video and (format in ("coco", "csv") or drawn or smooth)):
        pictures = [] if video else name_uniquely(images)
        if drawn:
            options["include"] = [*include, "overlay"]
        options["format"] = format or ("jsonl" if video and not background else "native")
        started = client.estimate_async(category, pictures, video, every, **in_background, **of_video, **options)
        if background:
            session.show(started, print_background)
        elif format or drawn or not video:
            finish(session, started.id, overlay=drawn, prints=format is not None or not video)
        else:
            _print_stored(session, started.id)
    elif video:
        box_of_all = boxes[0] if isinstance(boxes, list) else boxes
        try:
            frames = client.estimate_video(category, video, every, box=box_of_all, locate=locate, **of_video, **options)
            _print_lines(frames, session.as_json or format is not None)
        except APIError as error:
            if error.code not in _TOO_LONG:
                raise
            err.print("[yellow]a long video: estimated in the background[/]")
            started = client.estimate_async(
                category, [], video, every, format="jsonl", **in_background, **of_video, **options
            )
            _print_stored(session, started.id, format is not None)
    elif format == "jsonl" and not drawings:
        _print_lines(client.estimate_lines(category, images, boxes=boxes, **options), True, images)
    elif format:
        unsupported = {"overlays": overlay, "link maps": link_map, "--include": more}
        for name, value in unsupported.items():
            if value:
                raise InputError(f"--format {format} has no place for {name}; leave one of them out")
        text = client.estimate_as(format, category, name_uniquely(images), version, refine_steps, boxes, marks, align)
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        found = client.estimate(category, images, boxes=boxes, **options)
        written = [path for kind, file in drawings.items() for path in _write_drawings(found, kind, file)]
        if session.as_json:
            print_json(found)
            return
        _print_estimate(found, [_shown_name(path) for path in images])
        for path in written:
            print_path(path)


def _print_stored(session: Session, estimate_id: str, as_json: bool = False) -> None:
    """Wait for an estimate in JSON lines and print them, as those that come at once."""
    wait(session, estimate_id)
    with tempfile.TemporaryDirectory() as folder:
        file = session.client.save_estimate(estimate_id, Path(folder, "lines"))
        with file.open() as lines:
            _print_lines(filter(None, (parse_line(line, 0) for line in lines)), session.as_json or as_json)


def _find_pictures(paths: list[Path]) -> list[Path]:
    """Return the files, with folders replaced by their pictures."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(save_pipe(path))
            continue
        inside = list(list_pictures(path, videos=True))
        videos = [file for file in inside if is_video_name(file.name)]
        if len(videos) == len(inside):
            raise InputError(f"the folder {path} holds no picture")
        if videos:
            names = ", ".join(printable_name(file) for file in videos[:3]) + (", …" if len(videos) > 3 else "")
            err.print(f"[yellow]skipped, as a video must be the only argument: {escape(names)}[/]")
        found += [file for file in inside if file not in videos]
    return found


def _is_video(path: Path) -> bool:
    """Return whether a file is a video, or a TIFF whose pages are the frames of a clip."""
    if is_video_name(path.name) or not path.is_file():  # the request reports a missing file
        return is_video_name(path.name)
    from service.contract.media import tiff  # not at the top: it loads Pillow and NumPy

    with path.open("rb") as file:
        return is_video(file.read(HEAD_BYTES)) or tiff.is_stack(file)


def _shown_name(path: Path) -> str:
    return path.name if path.parent.name.startswith(PIPE_PREFIX) else printable_name(path)


def _check_drawings(drawings: dict[str, Path], *, waits_for_pictures: bool) -> None:
    for kind, file in drawings.items():
        option = f"--{kind.replace('_', '-')}"
        if not waits_for_pictures:
            raise InputError(
                f"{option} came with a video or --background, or with --locate; it draws on pictures alone"
            )
        if file.name in ("", "..") or file.is_dir():
            raise InputError(f"{option} is {file}; it must name a file to draw into")
    if len(drawings) == 2 and drawings["overlay"] == drawings["link_map"]:
        raise InputError(f"--overlay and --link-map both name {drawings['overlay']}; give each a file of its own")


def _read_boxes(texts: list[str] | None, file: Path | None, count: int) -> list[Any] | Path | None:
    """Return an entry for each picture, or a file for the server to read, which checks the values of either."""
    if texts and file:
        raise InputError("both --box and --boxes came; use one of them")
    if file:
        try:
            text = read_text(file)
            return _BOXES.validate_json(text, strict=True) if text.lstrip()[:1] == "[" else file
        except ValidationError as error:
            came, expected = error.errors()[0], "[x, y, width, height], a list of such, or null for each picture"
            if came["type"] == "json_invalid":
                raise InputError(
                    f"{file} is not JSON ({came['ctx']['error']}); it must be a list with {expected}"
                ) from error
            raise InputError(f"{file} is not a list with {expected}") from error
    if not texts:
        return None
    if count > 1:
        raise InputError(f"--box is for one picture and {count} came; name a file with --boxes")
    boxes = [_parse_box(text) for text in texts]
    return boxes if len(boxes) == 1 else [boxes]


def _parse_box(text: str) -> tuple[float, ...]:
    try:
        box = tuple(map(float, text.split(",")))
    except ValueError:
        box = ()
    if len(box) not in (4, 5):
        raise InputError(
            f"--box is {text[:80]!r}; it must be four numbers, as in --box 10,20,200,150, or five with an angle"
        )
    return box


def _print_lines(lines: Iterable[PoseLine | FailedPicture], as_json: bool, images: Sequence[Path] = ()) -> None:
    failed = False
    for line in lines:
        failed |= isinstance(line, FailedPicture)
        if as_json:
            name = {"image": _shown_name(images[line.index])} if images else {}
            text = json.dumps({**name, **line.model_dump(mode="json", exclude_defaults=True)})
            # stdout may be the file of a video's poses
            print(text, flush=True, file=sys.stderr if isinstance(line, FailedPicture) and not images else sys.stdout)
        else:
            _print_frame(line)
    if failed:
        raise typer.Exit(1)


def _print_estimate(estimate: Estimate, names: Sequence[str]) -> None:
    """Print keypoints in pixels, one table for each pose; ``names`` are those of the pictures."""
    for image in estimate.images:
        say(f"{names[image.index]}  {image.width} x {image.height} px{''.join(_box_and_surprise(image))}")
        rows = [
            (f"{it.id} {it.name or ''}".rstrip(), f"{it.x:.1f}", f"{it.y:.1f}", f"{it.score:.2f}")
            for it in image.keypoints
        ]
        print_table(("keypoint", "x", "y", "score"), rows)
        if image.landmarks:
            rows = [(it.name, f"{it.x:.1f}", f"{it.y:.1f}", f"{it.score:.2f}") for it in image.landmarks]
            print_table(("landmark", "x", "y", "score"), rows)
    out.print(f"category {estimate.category}, version {estimate.version}, {estimate.timing_ms.total:.0f} ms")


def _print_frame(line: PoseLine | FailedPicture) -> None:
    """Print a frame's mean score on one line, or its error on stderr."""
    if isinstance(line, FailedPicture):
        err.print(f"[red]{escape(line.error.detail)}[/]")
        return
    if not line.keypoints:
        out.print(f"frame {line.frame} at {line.time_s:.3f} s: interpolated")
        return
    score = sum(point.score for point in line.keypoints) / len(line.keypoints)
    box, surprise = _box_and_surprise(line)
    out.print(f"frame {line.frame} at {line.time_s:.3f} s{box}: mean score {score:.2f}{surprise}")


def _box_and_surprise(image: ImageEstimate) -> tuple[str, str]:
    box = "" if image.box is None else f", box {image.box}"
    surprise = "" if image.surprise is None else f", surprise {image.surprise:.2f}"
    return box, surprise + ("" if image.present is None else f", present {image.present:.0%}")


def _write_drawings(estimate: Estimate, kind: str, file: Path) -> list[Path]:
    """Write a drawing for each pose; several get numbers in their file names."""
    pictures = [getattr(image, kind) for image in estimate.images]
    several = len(pictures) > 1
    paths = [file.with_name(f"{file.stem}-{n + 1}{file.suffix}") if several else file for n in range(len(pictures))]
    return [write_file(path, png_bytes(picture)) for path, picture in zip(paths, pictures, strict=True) if picture]
