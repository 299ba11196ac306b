"""A request for training, read and checked; and its archive on its way to disk."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastapi import Request

from model.config import PPLConfig, SettingError, resolve

from .contract.errors import BadArchive, BadRequest, BadSetting
from .contract.jobs import new_job_id
from .contract.store import JobFiles, check_category
from .documentation import DEFAULT_PRESET
from .errors import BadField
from .forms import read_form

InThread = Callable[..., Awaitable[Any]]

_SEND_ONE = "send a zip, tar or tar.gz of pictures in the field archive (curl -F archive=@FILE)"


@dataclass(frozen=True)
class TrainingRequest:
    """What shall be trained: the settings are complete and in their ranges."""

    category: str
    preset: str
    config: PPLConfig
    folder: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], folder: str | None = None) -> TrainingRequest:
        """From a form's fields or a JSON object's members.

        Raises:
            BadField, BadCategoryName: the category is missing or can't be one.
            BadSetting: unknown or out of its range; the detail names both.
        """
        values = {name: value for name, value in values.items() if value != ""}  # a field left empty is not given
        category, preset = values.pop("category", None), values.pop("preset", DEFAULT_PRESET)
        if not isinstance(category, str):
            raise BadField("category", "category is missing or no text; it names what the pictures show")
        try:
            config = resolve(str(preset), values)
        except SettingError as error:
            raise BadSetting(str(error), extra={"field": error.name}) from error
        return cls(check_category(category.strip()), str(preset), config, folder)


async def read_json(request: Request) -> TrainingRequest:
    """The JSON body of a training request, which names a folder.

    Raises:
        BadRequest: no JSON object. And as :meth:`TrainingRequest.of`.
    """
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise BadRequest("the body is not a JSON object with category and folder")
    nested = values.pop("settings", {})
    if not isinstance(nested, dict):
        raise BadField("settings", "settings is not a JSON object; it may hold settings of the model by name")
    folder = values.pop("folder", None)
    if not isinstance(folder, str) or not folder:
        raise BadField(
            "folder", "folder is missing or no text; it names a folder of pictures below the server's data root"
        )
    return TrainingRequest.of({**nested, **values}, folder)


async def read_upload(request: Request, intake: Intake) -> TrainingRequest:
    """The form of a training request; its archive is on disk afterwards.

    Raises:
        BadArchive: no archive came, or an empty one. And as :meth:`TrainingRequest.of`.
    """
    form = await read_form(
        request, "archive", 1, lambda: BadField("archive", "more than one archive came; send one"), intake.write
    )
    wanted = TrainingRequest.of(form.fields)
    if not form.files:
        raise BadArchive(f"no archive came; {_SEND_ONE}")
    if intake.is_empty:
        raise BadArchive(f"the archive is an empty file; {_SEND_ONE}")
    return wanted


class Intake:
    """The file of an upload: it appears with its first bytes, and is gone in the end unless a job owns it.

    Args:
        in_thread: runs a blocking function.
    """

    def __init__(self, files: JobFiles, in_thread: InThread) -> None:
        self.job_id = new_job_id()
        self._files = files
        self._in_thread = in_thread
        self._file: IO[bytes] | None = None
        self._owned = False

    @property
    def path(self) -> Path:
        """Where the archive is."""
        return self._files.archive(self.job_id)

    @property
    def is_empty(self) -> bool:
        """Whether no byte came."""
        return self._file is None

    async def write(self, data: bytes) -> None:
        """Append to the archive."""
        await self._in_thread(self._write, data)

    async def sync(self) -> None:
        """Have it all on the disk: the job must not outlive its archive."""
        await self._in_thread(self._sync)

    def hand_over(self) -> None:
        """A job owns the file now."""
        self._owned = True

    async def close(self) -> None:
        """Close the file, and remove it unless a job owns it."""
        await self._in_thread(self._close)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._files.create(self.job_id)
            self._file = self.path.open("xb")
        self._file.write(data)

    def _sync(self) -> None:
        assert self._file is not None  # there is something to sync
        self._file.flush()
        os.fsync(self._file.fileno())
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        finally:
            if not self._owned:
                self._files.remove(self.job_id)
