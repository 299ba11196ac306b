"""Form fields of POST /estimate; many pictures as several requests, and their responses as one."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from .connection import given
from .errors import APIError, InputError
from .types import Estimate, FailedPicture, PoseLine, Timing
from .uploads import Picture, picture_part, read_text

POSES_A_REQUEST = 32

Box = Sequence[float]
Boxes = Sequence[Box | Sequence[Box] | None]
BoxFile = str | os.PathLike[str]  # CSV (image,x,y,width,height), COCO or MegaDetector's JSON


def form_fields(
    category: str,
    version: str | None,
    refine_steps: int,
    include: Sequence[str] = (),
    landmarks: str | None = None,
    align: str | None = None,
) -> dict[str, str]:
    """Return the fields that every estimate has; unset ones are left out."""
    fields = {"category": category, "refine_steps": str(refine_steps)}
    return fields | given(version=version, include=",".join(include), landmarks=landmarks, align=align)


def video_fields(
    every: int, box: Box | Sequence[Box] | BoxFile | None, max_animals: int | None = None
) -> dict[str, str]:
    """Return the fields that a video adds."""
    boxes = box if box is None or isinstance(box, (str, os.PathLike)) else [box]
    return (
        {"every": str(every)}
        | boxes_field(boxes)
        | given(max_animals=None if max_animals is None else str(max_animals))
    )


def picture_files(images: Sequence[Picture], stack: ExitStack) -> list[tuple[str, Any]]:
    """Return the pictures as form parts; opened files are closed with the stack."""
    return [("images", picture_part(image, index, stack)) for index, image in enumerate(images)]


def boxes_field(boxes: Boxes | BoxFile | None) -> dict[str, str]:
    """Return the form field of boxes, which may be tuples, rows of arrays, or a file; none without boxes."""
    if isinstance(boxes, (str, os.PathLike)):
        return {"boxes": read_text(boxes)}
    return {} if boxes is None else {"boxes": json.dumps(_to_lists(boxes))}


def split_pictures(
    images: Sequence[Picture], boxes: Boxes | BoxFile | None
) -> Iterator[tuple[int, Sequence[Picture], Boxes | BoxFile | None]]:
    """Yield requests of at most POSES_A_REQUEST poses each; a picture with more boxes gets a request of its own.

    A file of boxes goes with every request.

    Yields:
        The index of the first picture, the pictures and their boxes.

    Raises:
        InputError: no pictures, or their number differs from that of the boxes' entries.
    """
    if not images:
        raise InputError("no pictures were given; give at least one")
    if isinstance(boxes, (str, os.PathLike)):
        for first in range(0, len(images), POSES_A_REQUEST):
            yield first, images[first : first + POSES_A_REQUEST], boxes
        return
    if boxes is not None and len(boxes) != len(images):
        raise InputError(f"{len(images)} pictures came with {len(boxes)} entries of boxes; each picture needs one")
    counts = [_count_boxes(boxes[index]) if boxes is not None else 1 for index in range(len(images))]
    first = 0
    while first < len(images):
        last, poses = first + 1, counts[first]
        while last < len(images) and poses + counts[last] <= POSES_A_REQUEST:
            poses += counts[last]
            last += 1
        yield first, images[first:last], None if boxes is None else boxes[first:last]
        first = last


def parse_line(line: str, first: int) -> PoseLine | FailedPicture | None:
    """Parse a JSON line; ``first`` is added to its index. None for the summary, which is the last line."""
    content = json.loads(line)
    if "summary" in content:
        return None
    content["index"] += first
    return FailedPicture.model_validate(content) if "error" in content else PoseLine.model_validate(content)


def renumber_error(error: APIError, first: int) -> APIError:
    """Add ``first`` to the picture's index in an error of a later request."""
    problem, index = error.problem, error.problem.get("index")
    if not first or not isinstance(index, int):
        return error
    detail = error.detail.replace(f"images[{index}]", f"images[{first + index}]", 1)
    return APIError({**problem, "index": first + index, "detail": detail}, error.status or 0, error.retry_after_s)


def merge_estimates(parts: Sequence[tuple[int, Estimate]]) -> Estimate:
    """Merge responses into one with consecutive indices and summed timings.

    Args:
        parts: responses, each with the index of its first picture.
    """
    if len(parts) == 1:
        return parts[0][1]
    images = [image.model_copy(update={"index": image.index + first}) for first, part in parts for image in part.images]
    timings = [part.timing_ms.model_dump() for _, part in parts]
    total = Timing(**{name: sum(timing[name] for timing in timings) for name in timings[0]})
    return parts[0][1].model_copy(update={"images": images, "timing_ms": total})


def merge_csv(parts: Sequence[tuple[int, str]]) -> str:
    """Concatenate DeepLabCut tables; their header rows, up to "coords", must be equal."""
    tables = [list(csv.reader(io.StringIO(text))) for _, text in parts]
    lengths = [next(number for number, row in enumerate(table, 1) if row[0] == "coords") for table in tables]
    header = tables[0][: lengths[0]]
    if any(table[:length] != header for table, length in zip(tables, lengths, strict=True)):
        raise InputError("the pictures have different numbers of boxes, or the version changed meanwhile; send fewer")
    text = io.StringIO()
    rows = [row for table, length in zip(tables, lengths, strict=True) for row in table[length:]]
    csv.writer(text, lineterminator="\n").writerows(header + rows)
    return text.getvalue()


def merge_coco(parts: Sequence[tuple[int, str]]) -> str:
    """Merge COCO data sets into one with consecutive ids."""
    datasets = [(first, json.loads(text)) for first, text in parts]
    merged = datasets[0][1]
    if any(dataset["info"] != merged["info"] for _, dataset in datasets):
        raise InputError("the version changed meanwhile; send the pictures again")
    images = [{**image, "id": image["id"] + first} for first, dataset in datasets for image in dataset["images"]]
    firsts = [(first, annotation) for first, dataset in datasets for annotation in dataset["annotations"]]
    annotations = [
        {**annotation, "id": number, "image_id": annotation["image_id"] + first}
        for number, (first, annotation) in enumerate(firsts, 1)
    ]
    return json.dumps({**merged, "images": images, "annotations": annotations})


MERGE_TEXTS = {"coco": merge_coco, "csv": merge_csv}


def _count_boxes(entry: Box | Sequence[Box] | None) -> int:
    return len(entry) if entry and isinstance(entry[0], Sequence) else 1


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, Sequence) else value
