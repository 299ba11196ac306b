"""A request for training, read and checked: a form with its uploads, or JSON that names what lies on the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from fastapi import Request

from model.config import PPLConfig, SettingError, resolve
from model.prior_values import PriorValues

from .continuing import Base
from .contract.additions import Additions
from .contract.errors import BadArchive, BadLabels, BadPrior, BadRequest, BadSetting
from .contract.job_files import MAX_LABELS_BYTES
from .contract.priors import MAX_PRIOR_BYTES, check_prior, check_use, read_prior
from .contract.store import VersionStore, check_category
from .documentation import DEFAULT_PRESET
from .errors import BadField
from .forms import FileField, read_form
from .intake import Intake

InThread = Callable[..., Any]

_LONGEST_NAME = 200
_SEND_ONE = "send a zip, tar or tar.gz of pictures or clips, or one video, in the field archive (curl -F archive=@FILE)"


@dataclass(frozen=True)
class TrainingRequest:
    """What shall be trained: the settings are complete and in their ranges, the prior suits them.

    Attributes:
        folder: of the pictures, below the data root; None where an archive was uploaded or a dataset named.
        labels: path of the labels below the data root, where the request names one.
        prior: to start from, where one came.
        activate: whether the version becomes the category's active one.
        dataset: id of the dataset to train on, where the request names one.
        webhook_url: where the job's end shall be told; not checked yet.
        base: the version to go on from, where the request names one.
        asked: all that the request says beside its files, as JSON. A version is in it as the request names it, by an
            alias perhaps: the same request asks for the same, whatever became of that name since.
        brings_prior: whether the prior came with the request.
    """

    category: str
    preset: str
    config: PPLConfig
    folder: str | None = None
    labels: str | None = None
    prior: PriorValues | None = None
    activate: bool = True
    dataset: str | None = None
    webhook_url: str | None = None
    base: Base | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    brings_prior: bool = False

    @classmethod
    def of(
        cls,
        values: Mapping[str, Any],
        folder: str | None = None,
        labels: str | None = None,
        prior: PriorValues | None = None,
        dataset: str | None = None,
        base: Base | None = None,
        named: Mapping[str, str | None] = MappingProxyType({}),
    ) -> TrainingRequest:
        """From a form's fields or a JSON object's members; K is the prior's unless num_keypoints is given.

        Args:
            named: the versions that the request names, as it does.

        Raises:
            BadField, BadCategoryName: the category is missing or can't be one, or activate is no truth value.
            BadSetting: unknown or out of its range; the detail names both.
            BadPrior: the settings and the prior do not suit each other.
        """
        values = {name: value for name, value in values.items() if value != ""}  # a field left empty is not given
        category, preset = values.pop("category", None), values.pop("preset", None)
        webhook_url = values.pop("webhook_url", None)
        activate = _truth("activate", values.pop("activate", True))
        if not isinstance(category, str):
            raise BadField("category", "category is missing or no text; it names what the pictures show")
        category, named = category.strip(), {field: name for field, name in named.items() if name is not None}
        given = {"preset": preset, **values}
        brings_prior = prior is not None and not named
        if base is not None:
            preset, config = base.config(None if preset is None else str(preset), values)
            if prior is not None:
                raise BadField(
                    "prior", "both a prior and continue_from came; what continues from a version starts from its prior"
                )
            prior = base.prior if config.needs_prior else None
        else:
            preset = str(DEFAULT_PRESET if preset is None else preset)
            if prior is not None:
                values.setdefault("num_keypoints", len(prior.keypoint_prior))
            try:
                config = resolve(preset, values)
            except SettingError as error:
                raise BadSetting(str(error), extra={"field": error.name}) from error
            check_use(prior, config)
        asked = {"category": category, "activate": activate, "webhook_url": webhook_url, "dataset": dataset}
        # a setting said or left to its default is the same, unless the default is a version's
        asked |= {"folder": folder, "labels": labels, **named}
        asked["settings"] = given if named else {"preset": preset, **config.to_dict()}
        return cls(
            check_category(category),
            preset,
            config,
            folder,
            labels,
            prior,
            activate,
            dataset,
            webhook_url,
            base,
            asked,
            brings_prior,
        )

    def check_processes(self, processes: int) -> None:
        """Raises BadSetting where so many training processes can't share a batch evenly."""
        try:
            self.config.check_processes(processes)
        except SettingError as error:
            raise BadSetting(str(error), extra={"field": error.name}) from error


async def read_json(request: Request, store: VersionStore, in_thread: InThread) -> TrainingRequest:
    """The JSON body of a training request, which names a folder or a dataset.

    Args:
        store: of the versions whose prior the request may name.
        in_thread: runs a blocking function.

    Raises:
        BadRequest: no JSON object. And as :meth:`TrainingRequest.of` and :func:`_prior_of`.
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
    given, named = values.pop("prior", None), values.pop("prior_from", None)
    prior = await in_thread(_prior_of, None if given is None else lambda: check_prior(given), named, store)
    continue_from = values.pop("continue_from", None)
    base = await in_thread(_base_of, continue_from, values.get("category"), store)
    versions = {"prior_from": named, "continue_from": continue_from}
    return TrainingRequest.of({**nested, **values}, folder, labels, prior, dataset, base, versions)


async def read_upload(request: Request, intake: Intake, store: VersionStore, in_thread: InThread) -> TrainingRequest:
    """The form of a training request; its archive, unless it names a dataset, and labels are on disk afterwards.

    Raises:
        BadArchive, BadLabels: no archive came, or an empty file.
        BodyTooLarge: a file is longer than it may be.
        And as :meth:`TrainingRequest.of` and :func:`_prior_of`.
    """
    fields = {
        "archive": FileField(1, lambda: _twice("archive"), intake.archive.write, intake.archive.max_bytes),
        "labels": FileField(1, lambda: _twice("labels"), intake.labels.write, MAX_LABELS_BYTES),
        "prior": FileField(1, lambda: _twice("prior"), None, MAX_PRIOR_BYTES, or_text=True),
    }
    form = await read_form(request, fields)
    archive = form.first("archive")
    dataset = _dataset_of(form.fields.pop("dataset", "").strip() or None, "an archive" if archive else None)
    if archive is None and not dataset:
        raise BadArchive(f"no archive came; {_SEND_ONE}, or name a dataset in the field dataset")
    if archive:
        if intake.archive.is_empty:
            raise BadArchive(f"the archive is an empty file; {_SEND_ONE}")
        intake.archive.name = PurePosixPath(archive.filename.replace("\\", "/")).name[-_LONGEST_NAME:]
    if form.first("labels") and intake.labels.is_empty:
        raise BadLabels("the labels are an empty file; send CSV or JSON, or leave the field labels out")
    part = form.first("prior")
    named = form.fields.pop("prior_from", "").strip() or None
    prior = await in_thread(_prior_of, part and (lambda: read_prior(bytes(part.data))), named, store)
    continue_from = form.fields.pop("continue_from", "").strip() or None
    base = await in_thread(_base_of, continue_from, form.fields.get("category"), store)
    versions = {"prior_from": named, "continue_from": continue_from}
    return TrainingRequest.of(form.fields, prior=prior, dataset=dataset, base=base, named=versions)


def _dataset_of(named: Any, other: str | None) -> str | None:
    """The dataset that a request names, which it does in place of the other source. Raises BadField."""
    if named is None:
        return None
    if not isinstance(named, str) or not named:
        raise BadField("dataset", "dataset is no text; it is the id of a dataset, as GET /datasets lists them")
    if other:
        raise BadField("dataset", f"both a dataset and {other} came; one of them says what to train on")
    return named


def _base_of(named: Any, category: Any, store: VersionStore) -> Base | None:
    return None if named is None else Base.of(named, category, store)


def _prior_of(given: Callable[[], PriorValues] | None, named: Any, store: VersionStore) -> PriorValues | None:
    """The prior that a request holds, or the one of a version that it names as CATEGORY or CATEGORY@VERSION.

    The latter as ``GET /priors`` shows it: with the names that its keypoints were given since.

    Raises:
        BadField: both, or a name that is no text.
        BadPrior: it can't be one.
        UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName, StoreCorrupt.
    """
    if named is None:
        return given() if given else None
    if given:
        raise BadField("prior_from", "both prior and prior_from came; one of them says what to start from")
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
