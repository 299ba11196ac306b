"""A request for training, read and checked: a form with its uploads, or JSON that names what lies on the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import Request

from model.config import DEFAULT_PRESET, PPLConfig, SettingError, resolve
from model.version.prior_values import PriorValues
from service.contract.errors import BadArchive, BadLabels, BadPrior, BadRequest, BadSetting
from service.contract.jobs.files import MAX_LABELS_BYTES
from service.contract.versions.additions import Additions
from service.contract.versions.start_prior import MAX_PRIOR_BYTES, check_prior, check_use, read_prior
from service.contract.versions.store import VersionStore, check_category
from service.http.multipart import FileField, read_form
from service.http.problems import BadField

from .base_version import Base
from .uploads import Intake

InThread = Callable[..., Any]

_LONGEST_NAME = 200
_SEND_ONE = "send a zip, tar or tar.gz of pictures or clips, or one video, in the field archive (curl -F archive=@FILE)"


@dataclass(frozen=True)
class Asked:
    """What a request says, before anything that it names is looked for.

    Attributes:
        values: the category, ``activate``, ``webhook_url``, the preset and settings of the model, as they came.
        folder: of the pictures, below the data root; None where an archive was uploaded or a dataset named.
        labels: path of the labels below the data root, where the request names one.
        dataset: id of the dataset to train on, where the request names one.
        prior: to start from, where one came.
        prior_from: the version whose prior to start from, as the request names it.
        continue_from: the version to go on from, as the request names it.
    """

    values: Mapping[str, Any]
    folder: str | None = None
    labels: str | None = None
    dataset: str | None = None
    prior: PriorValues | None = None
    prior_from: Any = None
    continue_from: Any = None

    def __post_init__(self) -> None:
        """Raises BadField: both a prior and the name of one."""
        if self.prior is not None and self.prior_from is not None:
            raise BadField("prior_from", "both prior and prior_from came; one of them says what to start from")

    def stated(self) -> dict[str, Any]:
        """All that the request says beside its files, as JSON.

        A version, a dataset or a folder is in it as the request names it, by an alias perhaps: the same request says
        the same, whatever became of what it names. A setting said or left to its default is the same, unless the
        default is a version's.

        Raises:
            As :meth:`TrainingRequest.of`.
        """
        head = _Head.of(self.values)
        names = {"prior_from": self.prior_from, "continue_from": self.continue_from}
        names = {field: name for field, name in names.items() if name is not None}
        if names:
            settings = {"preset": head.preset, **head.settings}
        else:
            plain = TrainingRequest.of(self.values, self.prior)
            settings = {"preset": plain.preset, **plain.config.to_dict()}
        return {
            "category": head.category,
            "activate": head.activate,
            "webhook_url": head.webhook_url,
            "dataset": self.dataset,
            "folder": self.folder,
            "labels": self.labels,
            **names,
            "settings": settings,
        }

    def request(self, store: VersionStore) -> TrainingRequest:
        """With the versions that it names, as they are now. Blocking.

        Raises:
            As :meth:`TrainingRequest.of`, :meth:`Base.of` and :func:`_prior_of`.
        """
        prior = self.prior if self.prior_from is None else _prior_of(self.prior_from, store)
        base = None if self.continue_from is None else Base.of(self.continue_from, self.values.get("category"), store)
        return TrainingRequest.of(self.values, prior, base)


@dataclass(frozen=True)
class TrainingRequest:
    """What shall be trained: the settings are complete and in their ranges, the prior suits them.

    Attributes:
        prior: to start from, if any.
        activate: whether the version becomes the category's active one.
        webhook_url: where the job's end shall be told; not checked yet.
        base: the version to go on from, where the request names one.
    """

    category: str
    preset: str
    config: PPLConfig
    prior: PriorValues | None
    activate: bool
    webhook_url: str | None
    base: Base | None

    @classmethod
    def of(
        cls, values: Mapping[str, Any], prior: PriorValues | None = None, base: Base | None = None
    ) -> TrainingRequest:
        """From a form's fields or a JSON object's members; K is the prior's unless num_keypoints is given.

        Raises:
            BadField, BadCategoryName: the category is missing or can't be one, or activate is no truth value.
            BadSetting: unknown or out of its range; the detail names both.
            BadPrior: the settings and the prior do not suit each other.
        """
        head = _Head.of(values)
        if base is not None:
            preset, config = base.config(None if head.preset is None else str(head.preset), head.settings)
            if prior is not None:
                raise BadField(
                    "prior", "both a prior and continue_from came; what continues from a version starts from its prior"
                )
            prior = base.prior if config.needs_prior else None
        else:
            preset, settings = str(DEFAULT_PRESET if head.preset is None else head.preset), dict(head.settings)
            if prior is not None:
                settings.setdefault("num_keypoints", len(prior.keypoint_prior))
            try:
                config = resolve(preset, settings)
            except SettingError as error:
                raise BadSetting(str(error), extra={"field": error.name}) from error
            check_use(prior, config)
        return cls(check_category(head.category), preset, config, prior, head.activate, head.webhook_url, base)

    def check_processes(self, processes: int) -> None:
        """Raises BadSetting where so many training processes can't share a batch evenly."""
        try:
            self.config.check_processes(processes)
        except SettingError as error:
            raise BadSetting(str(error), extra={"field": error.name}) from error


async def read_json(request: Request, intake: Intake, in_thread: InThread) -> Asked:
    """The JSON body of a training request, which names a folder or a dataset.

    Raises:
        BadRequest: no JSON object.
        BadField: a member that can't be what it is.
        BadPrior: the prior can't be one.
    """
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise BadRequest("the body is not a JSON object with category and folder, or category and dataset")
    nested = values.pop("settings", {})
    if not isinstance(nested, dict):
        raise BadField("settings", "settings is not a JSON object; it may hold settings of the model by name")
    folder, labels = values.pop("folder", None), values.pop("labels", None)
    dataset = _dataset_of(values.pop("dataset", None), "a folder" if folder is not None else None)
    if not dataset and (not isinstance(folder, str) or not folder):
        raise BadField(
            "folder",
            "folder is missing or no text; it names a folder of pictures below the server's data root (or name a "
            "dataset, in dataset)",
        )
    if labels is not None and (not isinstance(labels, str) or not labels):
        raise BadField("labels", "labels is no text; it names a CSV or JSON file below the server's data root")
    given, named, base = (values.pop(name, None) for name in ("prior", "prior_from", "continue_from"))
    prior = None if given is None else await in_thread(check_prior, given)
    return Asked({**nested, **values}, folder, labels, dataset, prior, named, base)


async def read_upload(request: Request, intake: Intake, in_thread: InThread) -> Asked:
    """The form of a training request; its archive, unless it names a dataset, and labels are on disk afterwards.

    Raises:
        BadArchive, BadLabels: no archive came, or an empty file.
        BodyTooLarge: a file is longer than it may be.
        BadField: a field that can't be what it is.
        BadPrior: the prior can't be one.
    """
    fields = {
        "archive": FileField(1, lambda: _twice("archive"), intake.archive.write, intake.archive.max_bytes),
        "labels": FileField(1, lambda: _twice("labels"), intake.labels.write, MAX_LABELS_BYTES),
        "prior": FileField(1, lambda: _twice("prior"), None, MAX_PRIOR_BYTES, or_text=True),
    }
    form = await read_form(request, fields)
    archive = form.first("archive")
    for name in ("prior_from", "continue_from"):
        if name in form.fields and not form.fields[name].strip():  # a variable of a script that is empty, say
            raise BadField(name, f"{name} is empty; name a version, or leave the field out")
    dataset, named, base = (
        form.fields.pop(name, "").strip() or None for name in ("dataset", "prior_from", "continue_from")
    )
    _dataset_of(dataset, "an archive" if archive else None)
    if archive is None and not dataset:
        raise BadArchive(f"no archive came; {_SEND_ONE}, or name a dataset in the field dataset")
    if archive:
        if intake.archive.is_empty:
            raise BadArchive(f"the archive is an empty file; {_SEND_ONE}")
        intake.archive.name = PurePosixPath(archive.filename.replace("\\", "/")).name[-_LONGEST_NAME:]
    if form.first("labels") and intake.labels.is_empty:
        raise BadLabels("the labels are an empty file; send CSV or JSON, or leave the field labels out")
    await intake.flush()
    part = form.first("prior")
    prior = await in_thread(read_prior, bytes(part.data)) if part else None
    return Asked(form.fields, dataset=dataset, prior=prior, prior_from=named, continue_from=base)


@dataclass(frozen=True)
class _Head:
    """What a request says beside the model's settings, and these."""

    category: str
    activate: bool
    webhook_url: Any
    preset: Any
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> _Head:
        """Raises BadField."""
        left = {name: value for name, value in values.items() if value != ""}  # a field left empty is not given
        category, preset, webhook_url = (left.pop(name, None) for name in ("category", "preset", "webhook_url"))
        activate = _truth("activate", left.pop("activate", True))
        if not isinstance(category, str):
            raise BadField("category", "category is missing or no text; it names what the pictures show")
        return cls(category.strip(), activate, webhook_url, preset, left)


def _dataset_of(named: Any, other: str | None) -> str | None:
    """The dataset that a request names, which it does in place of the other source. Raises BadField."""
    if named is None:
        return None
    if not isinstance(named, str) or not named:
        raise BadField("dataset", "dataset is no text; it is the id of a dataset, as GET /datasets lists them")
    if other:
        raise BadField("dataset", f"both a dataset and {other} came; one of them says what to train on")
    return named


def _prior_of(named: Any, store: VersionStore) -> PriorValues:
    """The prior of a version that a request names as CATEGORY or CATEGORY@VERSION.

    It is what ``GET /priors`` shows: with the names that its keypoints were given since.

    Raises:
        BadField: a name that is no text.
        BadPrior: it can't be one.
        UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName, StoreCorrupt.
    """
    if not isinstance(named, str):
        raise BadField("prior_from", "prior_from is no text; it names a CATEGORY or CATEGORY@VERSION")
    category, at, version = named.partition("@")
    name = store.resolve(category, version if at else None)
    document, names = store.prior(category, name), Additions(store).names(category, name)
    try:
        return check_prior({**document, "keypoint_names": list(names)} if names else document)
    except BadPrior as error:
        raise BadPrior(f"the prior of {category}@{name}: {error.detail}") from error


def _truth(name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise BadField(name, f"{name} is {str(value)[:80]!r}; it must be true or false")
    return text == "true"


def _twice(name: str) -> BadField:
    return BadField(name, f"more than one file came in the field {name}; send one")
