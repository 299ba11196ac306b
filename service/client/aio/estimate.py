"""What the client does to get poses: all at once, as they are found, or in another program's format."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from service.client.errors import APIError, InputError
from service.client.paths import quoted
from service.client.types import BackgroundEstimate, Estimate, EstimateWithResult, FailedPicture, PoseLine, joined
from service.client.uploads import Picture, file_part, picture_part

from .transport import AsyncTransport

POSES_A_REQUEST = 32
LINES = "application/jsonl"

Box = Sequence[float]
Boxes = Sequence[Box | Sequence[Box] | None]
Part = tuple[int, Sequence[Picture], dict[str, str]]


class AsyncEstimateCalls(AsyncTransport):
    """The part of :class:`service.client.Client` that is about poses."""

    async def estimate(
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
            answers.append((first, self._read(Estimate, await self._estimate({**fields, **own}, part, first))))
        return joined(answers)

    async def estimate_lines(
        self,
        category: str,
        images: Sequence[Picture],
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        boxes: Boxes | None = None,
        landmarks: str | None = None,
    ) -> AsyncIterator[PoseLine | FailedPicture]:
        """The poses of many pictures as they are found; a picture that fails does not hinder the others.

        Their order is that of completion: ``index`` tells the pictures apart. Arguments as of :meth:`estimate`.

        Raises:
            APIError: the stream broke off before its end.
        """
        fields = _fields(category, version, refine_steps, include, landmarks)
        for first, part, own in _parts(images, boxes):
            async for found in self._lines(first, {**fields, **own}, part):
                yield found

    async def estimate_as(
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
        texts = []
        for first, part, own in _parts(images, boxes):
            texts.append((first, (await self._estimate({**fields, **own}, part, first)).text))
        return _JOINED[format](texts) if len(texts) > 1 else texts[0][1]

    async def estimate_video(
        self,
        category: str,
        video: str | os.PathLike[str],
        every: int = 1,
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        box: Box | Sequence[Box] | None = None,
        landmarks: str | None = None,
    ) -> AsyncIterator[PoseLine | FailedPicture]:
        """The poses of a video's frames as they are found, each with its ``frame`` and ``time_s``.

        Args:
            every: the first frame and each so-many-th after it.
            box: where the thing is in every frame, or a list of such boxes.
        """
        fields = _fields(category, version, refine_steps, include, landmarks) | _of_video(every, box)
        with ExitStack() as stack:
            async for found in self._stream_lines(0, fields, {"video": file_part(Path(video), stack)}):
                yield found

    async def estimate_async(
        self,
        category: str,
        images: Sequence[Picture] = (),
        video: str | os.PathLike[str] | None = None,
        every: int = 1,
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        boxes: Boxes | None = None,
        landmarks: str | None = None,
        format: str = "native",
    ) -> BackgroundEstimate:
        """Have pictures, or a video, worked on in the background; returns at once.

        Args:
            boxes: as of :meth:`estimate`; of a video one entry, which holds for every frame.
            format: "native", "coco" or "csv": how :meth:`estimate_result` gives the poses.
        """
        if bool(images) == (video is not None):
            raise InputError("name what to estimate: either pictures or a video")
        fields = _fields(category, version, refine_steps, include, landmarks) | {"format": format}
        with ExitStack() as stack:
            if video is not None:
                files: Any = {"video": file_part(Path(video), stack)}
                fields |= _of_video(every, boxes[0] if boxes else None)
            else:
                files = _files(images, stack)
                fields |= {} if boxes is None else {"boxes": json.dumps(_plain(boxes))}
            headers = {"Prefer": "respond-async"}
            answer = await self._send("POST", "/estimate", data=fields, files=files, headers=headers)
        return self._read(BackgroundEstimate, answer)

    def estimates(self) -> AsyncIterator[BackgroundEstimate]:
        """The estimates in the background that are kept, the newest first."""
        return self._pages("/estimates", BackgroundEstimate)

    async def estimate_job(self, estimate_id: str) -> EstimateWithResult:
        """An estimate in the background as it stands; with the poses once it succeeded."""
        return self._read(EstimateWithResult, await self._send("GET", f"/estimates/{quoted(estimate_id)}"))

    async def estimate_result(self, estimate_id: str) -> bytes:
        """The poses of an estimate that succeeded, in its format."""
        return (await self._send("GET", f"/estimates/{quoted(estimate_id)}/result")).content

    async def wait_estimate(
        self,
        estimate_id: str,
        on_progress: Callable[[BackgroundEstimate], None] | None = None,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> EstimateWithResult:
        """Waits for the end of an estimate in the background, whatever it is, and returns it.

        A server that is away for less than a minute (a restart) is waited for.

        Raises:
            TimeoutError: it goes on after ``timeout_s``.
        """

        async def look() -> EstimateWithResult:
            found = await self.estimate_job(estimate_id)
            if on_progress is not None:
                on_progress(found)
            return found

        return await self._until(look, lambda found: found.status.ended, f"estimate {estimate_id}", poll_s, timeout_s)

    async def cancel_estimate(self, estimate_id: str) -> BackgroundEstimate:
        """Stops an estimate in the background for good."""
        return self._read(BackgroundEstimate, await self._send("POST", f"/estimates/{quoted(estimate_id)}/cancel"))

    async def delete_estimate(self, estimate_id: str) -> None:
        """Removes an estimate that ended, with its result."""
        await self._send("DELETE", f"/estimates/{quoted(estimate_id)}")

    async def _estimate(self, fields: Mapping[str, str], images: Sequence[Picture], first: int) -> httpx.Response:
        with ExitStack() as stack:
            try:
                return await self._send("POST", "/estimate", data=fields, files=_files(images, stack))
            except APIError as error:
                raise _renumbered(error, first) from error

    async def _lines(
        self, first: int, fields: Mapping[str, str], images: Sequence[Picture]
    ) -> AsyncIterator[PoseLine | FailedPicture]:
        with ExitStack() as stack:
            async for found in self._stream_lines(first, fields, _files(images, stack)):
                yield found

    async def _stream_lines(
        self, first: int, fields: Mapping[str, str], files: Any
    ) -> AsyncIterator[PoseLine | FailedPicture]:
        headers = {"Accept": LINES}
        response = await self._send("POST", "/estimate", stream=True, data=fields, files=files, headers=headers)
        try:
            with self._errors():
                async for line in response.aiter_lines():
                    with self._expected():
                        found = _line(line, first)
                    if found is None:
                        return
                    yield found
        finally:
            await response.aclose()
        raise APIError({"code": "unexpected_answer", "detail": "the lines broke off before their end"}, 200)


def _line(line: str, first: int) -> PoseLine | FailedPicture | None:
    """What a line says; None of the last one."""
    found = json.loads(line)
    if "summary" in found:
        return None
    found["index"] += first
    return FailedPicture.model_validate(found) if "error" in found else PoseLine.model_validate(found)


def _renumbered(error: APIError, first: int) -> APIError:
    """What is wrong with a picture of a later request, with its number among all."""
    problem, index = error.problem, error.problem.get("index")
    if not first or not isinstance(index, int):
        return error
    detail = error.detail.replace(f"images[{index}]", f"images[{first + index}]", 1)
    return APIError({**problem, "index": first + index, "detail": detail}, error.status or 0, error.retry_after_s)


def _of_video(every: int, box: Any) -> dict[str, str]:
    return {"every": str(every)} | ({} if box is None else {"boxes": json.dumps([_plain(box)])})


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
        InputError: no picture, or not an entry of boxes for each.
    """
    if not images:
        raise InputError("no picture came; name at least one")
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
