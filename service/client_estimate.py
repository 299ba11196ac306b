"""What the client does to get poses: all at once, as they are found, or in another program's format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import httpx

from .client_errors import APIError, InputError
from .client_transport import Transport
from .client_types import Estimate, FailedPicture, PoseLine, joined
from .uploads import Picture, picture_part

POSES_A_REQUEST = 32
LINES = "application/jsonl"

Box = Sequence[float]
Boxes = Sequence[Box | Sequence[Box] | None]
Part = tuple[int, Sequence[Picture], dict[str, str]]


class EstimateCalls(Transport):
    """The part of :class:`service.client.Client` that is about poses."""

    def estimate(
        self,
        category: str,
        images: Sequence[Picture],
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        boxes: Boxes | None = None,
        landmarks: str | None = None,
    ) -> Estimate:
        """The poses of some pictures, in their order.

        Many pictures are sent in several requests; the answer is one, and its timings are sums.

        Args:
            images: paths, or the bytes of picture files.
            include: any of "link_map", "trajectory", "overlay", "codes".
            boxes: where the thing is in each picture, as x, y, width, height in pixels; a list of such boxes for
                several things in it, each with a pose of its own; or None for the whole picture.
            landmarks: a set of landmarks of the version, whose points the answer shall have too.
        """
        fields = _fields(category, version, refine_steps, include, landmarks)
        answers = []
        for first, part, own in _parts(images, boxes):
            answers.append((first, self._read(Estimate, self._estimate({**fields, **own}, part))))
        return joined(answers)

    def estimate_lines(
        self,
        category: str,
        images: Sequence[Picture],
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        boxes: Boxes | None = None,
        landmarks: str | None = None,
    ) -> Iterator[PoseLine | FailedPicture]:
        """The poses of many pictures as they are found; a picture that fails does not hinder the others.

        Their order is that of completion: ``index`` tells the pictures apart. Arguments as of :meth:`estimate`.

        Raises:
            APIError: the stream broke off before its end.
        """
        fields = _fields(category, version, refine_steps, include, landmarks)
        for first, part, own in _parts(images, boxes):
            yield from self._lines(first, {**fields, **own}, part)

    def estimate_as(
        self,
        format: str,
        category: str,
        images: Sequence[Picture],
        version: str | None = None,
        refine_steps: int = 0,
        boxes: Boxes | None = None,
    ) -> str:
        """The poses of some pictures as "coco" (a COCO keypoints data set) or "csv" (DeepLabCut's table).

        Many pictures are sent in several requests; the answer is one. Arguments else as of :meth:`estimate`.
        """
        if format not in _JOINED:
            raise InputError(f"format is {format!r}; it must be one of {', '.join(_JOINED)}")
        fields = {**_fields(category, version, refine_steps, (), None), "format": format}
        texts = [(first, self._estimate({**fields, **own}, part).text) for first, part, own in _parts(images, boxes)]
        return _JOINED[format](texts) if len(texts) > 1 else texts[0][1]

    def _estimate(self, fields: Mapping[str, str], images: Sequence[Picture]) -> httpx.Response:
        with ExitStack() as stack:
            return self._send("POST", "/estimate", data=fields, files=_files(images, stack))

    def _lines(
        self, first: int, fields: Mapping[str, str], images: Sequence[Picture]
    ) -> Iterator[PoseLine | FailedPicture]:
        with ExitStack() as stack:
            stack.enter_context(self._errors())
            files, headers = _files(images, stack), {"Accept": LINES}
            stream = self._http.stream("POST", "/estimate", data=fields, files=files, headers=headers)
            response = stack.enter_context(stream)
            if not response.is_success:
                response.read()
                raise APIError.of(response)
            for line in response.iter_lines():
                found = json.loads(line)
                if "summary" in found:
                    return
                found["index"] += first
                yield FailedPicture.model_validate(found) if "error" in found else PoseLine.model_validate(found)
        raise APIError({"code": "unexpected_answer", "detail": "the lines broke off before their end"}, 200)


def _fields(
    category: str, version: str | None, refine_steps: int, include: Sequence[str], landmarks: str | None
) -> dict[str, str]:
    given = {"version": version, "include": ",".join(include), "landmarks": landmarks}
    fields = {"category": category, "refine_steps": str(refine_steps)}
    return fields | {name: value for name, value in given.items() if value}


def _files(images: Sequence[Picture], stack: ExitStack) -> list[tuple[str, Any]]:
    return [("images", picture_part(image, index, stack)) for index, image in enumerate(images)]


def _parts(images: Sequence[Picture], boxes: Boxes | None) -> Iterator[Part]:
    """Requests of at most POSES_A_REQUEST poses each, unless a single picture has more: number of the first picture,
    pictures, and the field ``boxes`` where there are any.

    Raises:
        InputError: not an entry of boxes for each picture.
    """
    if boxes is not None and len(boxes) != len(images):
        raise InputError(f"{len(images)} pictures came with {len(boxes)} entries of boxes; each picture needs one")
    counts = [_count(boxes[index]) if boxes is not None else 1 for index in range(len(images))]
    first = 0
    while True:
        last, poses = first + 1, sum(counts[first : first + 1])
        while last < len(images) and poses + counts[last] <= POSES_A_REQUEST:
            poses += counts[last]
            last += 1
        own = {} if boxes is None else {"boxes": json.dumps([_plain(entry) for entry in boxes[first:last]])}
        yield first, images[first:last], own
        first = last
        if first >= len(images):
            return


def _count(entry: Box | Sequence[Box] | None) -> int:
    return len(entry) if entry and isinstance(entry[0], Sequence) else 1


def _plain(entry: Any) -> Any:
    """Tuples, arrays' rows and the like as JSON lists."""
    return [_plain(item) for item in entry] if isinstance(entry, Sequence) else entry


def _joined_csv(texts: Sequence[tuple[int, str]]) -> str:
    """Tables one below the other; their first rows, up to that of the coordinates, must be the same."""
    tables = [list(csv.reader(io.StringIO(text))) for _, text in texts]
    heads = [next(number for number, row in enumerate(table, 1) if row[0] == "coords") for table in tables]
    if any(table[:head] != tables[0][: heads[0]] for table, head in zip(tables, heads, strict=True)):
        raise InputError("the pictures have different numbers of boxes, or the version changed meanwhile; send fewer")
    lines = [line for table, head in zip(tables, heads, strict=True) for line in table[head:]]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(tables[0][: heads[0]] + lines)
    return text.getvalue()


def _joined_coco(texts: Sequence[tuple[int, str]]) -> str:
    """Data sets as one; the numbers of pictures and annotations run through."""
    parts = [(first, json.loads(text)) for first, text in texts]
    whole = parts[0][1]
    if any(part["info"] != whole["info"] for _, part in parts):
        raise InputError("the version changed meanwhile; send the pictures again")
    images = [{**image, "id": image["id"] + first} for first, part in parts for image in part["images"]]
    found = [{**one, "image_id": one["image_id"] + first} for first, part in parts for one in part["annotations"]]
    annotations = [{**one, "id": number} for number, one in enumerate(found, 1)]
    return json.dumps({**whole, "images": images, "annotations": annotations})


_JOINED = {"coco": _joined_coco, "csv": _joined_csv}
