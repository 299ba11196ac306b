"""The files of a request for an estimate, streamed to disk: kept for the background, or for as long as it is served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from service.contract.errors import BodyTooLarge
from service.estimates.background.store import EstimateFiles, new_estimate_id
from service.http.multipart import Part, Write

_LONGEST_NAME = 200


class EstimateIntake:
    """The files of one request, in the order in which they came; gone in the end unless they are handed over.

    Args:
        in_thread: runs a blocking function.
        max_picture_bytes: of a picture; of a video the limit on the body is enough.
        grown: told how many bytes came before each is put away; what it raises ends the request.

    Attributes:
        size_bytes: of all that came.
        names: of the files, without folders, once all came.
    """

    def __init__(
        self,
        files: EstimateFiles,
        in_thread: Callable[..., Awaitable[Any]],
        max_picture_bytes: int,
        grown: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.size_bytes = 0
        self.names: list[str] = []
        self._files = files
        self._in_thread = in_thread
        self._max_picture_bytes = max_picture_bytes
        self._grown = grown
        self._came: dict[int, int] = {}  # which file a part was written to
        self._owned = self._prepared = False

    @cached_property
    def estimate_id(self) -> str:
        """Names the folder that they lie in; made when it is needed, as most requests need none."""
        return new_estimate_id()

    def sink_of(self, part: Part) -> Write:
        """Where a file's bytes go."""
        index = self._came[id(part)] = len(self._came)
        most = self._max_picture_bytes if part.name == "images" else None

        async def write(data: bytes) -> None:
            self.size_bytes += len(data)
            if most is not None and part.size > most:
                raise BodyTooLarge(f"images[{index}] has more than {most} bytes, which a picture may have")
            if self._grown:
                await self._grown(self.size_bytes)
            await self._in_thread(self._append, index, data)

        return write

    async def settle(self, parts: list[Part]) -> None:
        """All came: number the files as the pictures of the request are."""
        await self._in_thread(self._settle, [self._came[id(part)] for part in parts])
        self.names = [part.filename[-_LONGEST_NAME:] for part in parts]

    def hand_over(self) -> None:
        """They are kept."""
        self._owned = True

    async def close(self) -> None:
        """Remove them unless they are kept."""
        if self._prepared and not self._owned:
            await self._in_thread(self._files.discard, self.estimate_id)

    def _append(self, index: int, data: bytes) -> None:
        self._prepare()
        with self._files.picture(self.estimate_id, index).open("ab") as file:
            file.write(data)

    def _settle(self, order: list[int]) -> None:
        self._prepare()
        for index, came in enumerate(order):  # rising, so none is in the way of another
            path = self._files.picture(self.estimate_id, came)
            path.touch()
            if came != index:
                path.rename(self._files.picture(self.estimate_id, index))

    def _prepare(self) -> None:
        if not self._prepared:
            self._prepared = True
            self._files.prepare(self.estimate_id)
