"""Calls that estimate poses: in one response, as a stream of lines, in another program's format, in the background."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from service.client import batches
from service.client.batches import Box, Boxes, BoxFile, boxes_field, form_fields
from service.client.connection import OnProgress, api_path, given
from service.client.errors import APIError, InputError, Unreachable
from service.client.retries import new_idempotency_key
from service.client.types import (
    BackgroundEstimate,
    Estimate,
    EstimateStatus,
    EstimateWithResult,
    FailedPicture,
    PoseLine,
)
from service.client.uploads import AnyPath, Picture, file_part

from .transport import Transport


class EstimateCalls(Transport):
    """The part of the client that estimates poses."""

    async def estimate(
        self,
        category: str,
        images: Sequence[Picture],
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        boxes: Boxes | BoxFile | None = None,
        landmarks: str | None = None,
        align: str | None = None,
    ) -> Estimate:
        """Estimate the poses of pictures, in their order.

        Many pictures are sent in several requests; their responses are merged and the timings summed.

        Args:
            images: paths, or the bytes of picture files.
            include: any of "link_map", "trajectory", "reconstructions", "overlay", "codes", "links".
            boxes: for each picture the object's box as x, y, width, height in pixels, and optionally its heading in
                degrees clockwise from up; or a list of boxes, each of which gets a pose; or None for the whole
                picture. Or a file: CSV (image,x,y,width,height), COCO or MegaDetector's JSON.
            landmarks: name of a landmark set whose points to return too.
            align: "heading" rotates what the model sees so that the object faces up, by its box's angle; "off" does
                not; by default as the version was trained.
        """
        fields = form_fields(category, version, refine_steps, include, landmarks, align)
        responses = await self._send_pictures(fields, images, boxes)
        return batches.merge_estimates([(first, self.read(Estimate, response)) for first, response in responses])

    async def estimate_lines(
        self,
        category: str,
        images: Sequence[Picture],
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        boxes: Boxes | BoxFile | None = None,
        landmarks: str | None = None,
        align: str | None = None,
    ) -> AsyncIterator[PoseLine | FailedPicture]:
        """Estimate the poses of many pictures and yield each when it is ready; ``index`` says which picture it is.

        A failed picture does not stop the others. Arguments as for :meth:`estimate`. Raises APIError if the stream
        ends too early.
        """
        fields = form_fields(category, version, refine_steps, include, landmarks, align)
        for first, pictures, some_boxes in batches.split_pictures(images, boxes):
            with ExitStack() as stack:
                files = batches.picture_files(pictures, stack)
                async for line in self._stream_lines(first, fields | boxes_field(some_boxes), files):
                    yield line

    async def estimate_as(
        self,
        format: str,
        category: str,
        images: Sequence[Picture],
        version: str | None = None,
        refine_steps: int = 0,
        boxes: Boxes | BoxFile | None = None,
        landmarks: str | None = None,
        align: str | None = None,
    ) -> str:
        """Estimate poses as "coco" (a COCO keypoints data set) or "csv" (DeepLabCut's table).

        Many pictures are sent in several requests and merged. The other arguments are as for :meth:`estimate`.
        """
        if format not in batches.MERGE_TEXTS:
            raise InputError(f"format is {format!r}; it must be one of {', '.join(batches.MERGE_TEXTS)}")
        fields = form_fields(category, version, refine_steps, landmarks=landmarks, align=align) | {"format": format}
        responses = await self._send_pictures(fields, images, boxes)
        parts = [(first, response.text) for first, response in responses]
        return batches.MERGE_TEXTS[format](parts) if len(parts) > 1 else parts[0][1]

    async def estimate_video(
        self,
        category: str,
        video: AnyPath,
        every: int = 1,
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        box: Box | Sequence[Box] | BoxFile | None = None,
        landmarks: str | None = None,
        locate: str | None = None,
        align: str | None = None,
        max_animals: int | None = None,
    ) -> AsyncIterator[PoseLine | FailedPicture]:
        """Estimate the poses of a video's frames and yield each when it is ready, with ``frame`` and ``time_s``.

        Args:
            every: take the first frame and every n-th after it.
            box: the object's box in every frame, a list of boxes, or a file of boxes by frame.
            locate: "motion" takes what moves before a fixed camera for the object, "auto" (the default without a box
                for every frame) where it is sure; in frames that a file of boxes names, its boxes hold. "off" takes
                whole frames, or only those with a box in the file, as "auto" does with MegaDetector's file of a video.
            max_animals: the largest number of animals; above 1 they are found by motion, and ``box`` of a pose is
                the number of its animal in all frames.
        """
        fields = form_fields(category, version, refine_steps, include, landmarks, align)
        fields |= batches.video_fields(every, box, max_animals) | given(locate=locate)
        with ExitStack() as stack:
            async for line in self._stream_lines(0, fields, {"video": file_part(video, stack)}):
                yield line

    async def estimate_async(
        self,
        category: str,
        images: Sequence[Picture] = (),
        video: AnyPath | None = None,
        every: int = 1,
        version: str | None = None,
        refine_steps: int = 0,
        include: Sequence[str] = (),
        boxes: Boxes | BoxFile | None = None,
        landmarks: str | None = None,
        format: str = "native",
        locate: str | None = None,
        smooth: str | None = None,
        max_gap: int | None = None,
        align: str | None = None,
        max_animals: int | None = None,
        idempotency_key: str | None = None,
    ) -> BackgroundEstimate:
        """Start an estimate of pictures or a video in the background and return at once.

        Args:
            boxes: see :meth:`estimate`; for a video one entry, used for every frame, or a file of boxes by frame.
            format: result's format: "native", "coco", "csv", "frames" (times and scores), "slp" (SLEAP's), "boxes"
                (where the object was found) or "jsonl".
            locate: see :meth:`estimate_video`; "motion" is for pictures of one fixed camera, too.
            include: see :meth:`estimate`; "overlay" of a video is written by :meth:`save_estimate`.
            smooth: filter for a video: "savgol" or "median", or with a window in frames, as "savgol:11".
            max_gap: longest gap in frames that is interpolated, with smooth.
            max_animals: of a video, see :meth:`estimate_video`.
            idempotency_key: the same key gives the same estimate; random by default.
        """
        if bool(images) == (video is not None):
            raise InputError("an estimate takes either pictures or a video; give one of them")
        if images and max_animals:
            raise InputError("max_animals is for a video, and pictures were given; leave it out")
        fields = form_fields(category, version, refine_steps, include, landmarks, align)
        fields |= {"format": format} | given(locate=locate)
        fields |= given(smooth=smooth, max_gap=None if max_gap is None else str(max_gap))
        headers = {"Prefer": "respond-async", **new_idempotency_key(idempotency_key)}
        with ExitStack() as stack:
            if video is not None:
                files: Any = {"video": file_part(video, stack)}
                of_all = boxes if boxes is None or isinstance(boxes, (str, os.PathLike)) else boxes[0]
                fields |= batches.video_fields(every, of_all, max_animals)
            else:
                files = batches.picture_files(images, stack)
                fields |= boxes_field(boxes)
            content = {"data": fields, "files": files, "headers": headers}
            return await self.request(BackgroundEstimate, "POST", "/estimate", **content)

    def estimates(self) -> AsyncIterator[BackgroundEstimate]:
        """Iterate over the background estimates, newest first."""
        return self.pages("/estimates", BackgroundEstimate)

    async def estimate_job(self, estimate_id: str) -> EstimateWithResult:
        """Return a background estimate; it has the poses once it has succeeded."""
        return await self.request(EstimateWithResult, "GET", api_path("estimates", estimate_id))

    async def estimate_result(self, estimate_id: str) -> bytes:
        """Return the poses of a background estimate that has succeeded, in its format."""
        return (await self.send("GET", api_path("estimates", estimate_id, "result"))).content

    async def save_estimate(self, estimate_id: str, to: Path, part: str = "result") -> Path:
        """Stream a part of a background estimate that has succeeded into a file, which it replaces when complete.

        Args:
            part: "result"; "raw" for the poses without smoothing, beside smoothed csv or coco; "overlay" for the video.
        """
        return await self.download(api_path("estimates", estimate_id, part), to)

    async def stream_estimate(self, estimate_id: str) -> AsyncIterator[bytes]:
        """Yield the poses of a background estimate in its format, part by part."""
        async for part in self.stream(api_path("estimates", estimate_id, "result")):
            yield part

    async def wait_estimate(
        self,
        estimate_id: str,
        on_progress: OnProgress[EstimateWithResult] = None,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> EstimateWithResult:
        """Wait until a background estimate has ended; survive outages under a minute. Raises TimeoutError."""
        path = api_path("estimates", estimate_id)
        return await self.poll(EstimateWithResult, path, on_progress, poll_s, timeout_s)

    async def cancel_estimate(self, estimate_id: str) -> BackgroundEstimate:
        """Stop a background estimate for good."""
        try:
            return await self.request(BackgroundEstimate, "POST", api_path("estimates", estimate_id, "cancel"))
        except APIError as error:
            now = await self.estimate_job(estimate_id) if error.status == 409 and error.repeated else None
            if now and now.status is EstimateStatus.CANCELLED:
                return now
            raise

    async def delete_estimate(self, estimate_id: str) -> None:
        """Delete a background estimate that has ended, with its result."""
        await self.delete_path(api_path("estimates", estimate_id))

    async def _send_pictures(
        self, fields: dict[str, str], images: Sequence[Picture], boxes: Boxes | BoxFile | None
    ) -> list[tuple[int, httpx.Response]]:
        """Send as many requests as the pictures need; return each response with the index of its first picture."""
        responses = []
        for first, pictures, some_boxes in batches.split_pictures(images, boxes):
            with ExitStack() as stack:
                data, files = fields | boxes_field(some_boxes), batches.picture_files(pictures, stack)
                try:
                    responses.append((first, await self.send("POST", "/estimate", data=data, files=files)))
                except APIError as error:
                    raise batches.renumber_error(error, first) from error
        return responses

    async def _stream_lines(self, first: int, fields: Any, files: Any) -> AsyncIterator[PoseLine | FailedPicture]:
        headers = {"Accept": "application/jsonl"}
        seen: set[tuple[int, int | None]] = set()
        for attempt in count():
            try:
                answer = await self.send("POST", "/estimate", stream=True, data=fields, files=files, headers=headers)
                async with aclosing(answer) as response:
                    with self._map_connection_errors():
                        async for text in response.aiter_lines():
                            with self._map_parse_errors():
                                line = batches.parse_line(text, first)
                            if line is None:
                                return
                            if (key := (line.index, getattr(line, "box", None))) not in seen:
                                seen.add(key)
                                yield line
                raise APIError({"code": "unexpected_answer", "detail": "the lines broke off before their end"}, 200)
            except Unreachable as failure:  # sent again: the poses are the same
                await self._wait_or_raise(failure, attempt, "POST", "/estimate")
