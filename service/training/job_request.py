"""Training requests: a form with uploads, or JSON that names files on the server, parsed and checked once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import Request

from model.config import DEFAULT_PRESET, PRESETS, SHAPING, PPLConfig, SettingError, parse, resolve
from model.version.prior_values import PriorValues, check_given
from service.contract.errors import BadArchive, BadBoxes, BadLabels, BadPrior, BadRequest, BadSetting, StoreCorrupt
from service.contract.jobs.files import MAX_LABELS_BYTES, MAX_PRIOR_BYTES, JobFiles, check_prior, read_prior
from service.contract.jobs.job import Activate, Continued
from service.contract.jobs.store import new_job_id
from service.contract.media.boxes import MAX_BOXES_BYTES
from service.contract.versions.additions import Additions, has_default_names
from service.contract.versions.store import VersionStore, check_category
from service.http.multipart import FileField, InThread, UploadFolder, read_form
from service.http.problems import BadField

_MAX_NAME_LENGTH = 200
_SEND_ONE = "send a zip, tar or tar.gz of pictures or clips, or one video, in the field archive (curl -F archive=@FILE)"


@contextmanager
def bad_settings() -> Iterator[None]:
    """Raise a SettingError of the model as BadSetting."""
    try:
        yield
    except SettingError as error:
        raise BadSetting(str(error), extra={"field": error.name[:80]}) from error


@dataclass(frozen=True)
class TrainingPlan:
    """The complete settings of a training, the prior to start from, and the version to continue, if any."""

    preset: str
    config: PPLConfig
    prior: PriorValues | None
    continued: Continued | None = None

    @classmethod
    def make(cls, preset: Any, settings: Mapping[str, Any], prior: PriorValues | None) -> TrainingPlan:
        """Complete settings from a preset. K is that of `prior` unless num_keypoints is given.

        Raises:
            BadSetting: unknown or out of its range; the detail names both.
            BadPrior: the settings and the prior do not fit together.
        """
        preset = str(DEFAULT_PRESET if preset is None else preset)
        if prior is not None:
            settings = {"num_keypoints": len(prior.keypoint_prior), **settings}
        with bad_settings():
            config = resolve(preset, settings)
        try:
            check_given(prior, config)
        except ValueError as error:
            hint = "" if prior else "; send one in the field prior, or name a category in prior_from"
            raise BadPrior(f"{error}{hint}") from error
        return cls(preset, config, prior)

    @classmethod
    def continue_from(
        cls, reference: Any, category: str, preset: Any, changes: Mapping[str, Any], store: VersionStore
    ) -> TrainingPlan:
        """Continue the training of the version that `reference` names: one of `category`, or CATEGORY@VERSION.

        Settings not in `changes` are the version's. Links stay as sharp as they were at its end: `link_width_start`
        is its `link_width`. Blocking.

        Raises:
            BadField: the reference is not text.
            BadSetting: a setting is out of range, or shapes the model and differs from the version's.
            UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName, BadPrior.
            StoreCorrupt: the version's own settings are not valid.
        """
        if not isinstance(reference, str) or not reference.strip():
            raise BadField("continue_from", "continue_from is not text; send a version, an alias or CATEGORY@VERSION")
        other, at, version = reference.strip().rpartition("@")
        category = other if at else category
        name = store.resolve(category, version)
        this = f"{category}@{name}"
        info, own, prior = store.info(category, name), store.config(category, name), _read_prior(category, name, store)
        own["link_width_start"] = own.get("link_width")
        try:
            base = PPLConfig.from_dict({name: value for name, value in own.items() if value is not None}).to_dict()
        except SettingError as error:
            raise StoreCorrupt(f"the settings of {this} can't be read: {error}") from error
        own_preset = str(info.get("preset"))
        own_preset = own_preset if own_preset in PRESETS else DEFAULT_PRESET
        if preset is not None and str(preset) != own_preset:
            raise BadSetting(f"preset is {str(preset)!r}; {this} has the preset {own_preset}: leave preset out")
        with bad_settings():
            for setting, value in changes.items():
                if setting in SHAPING and parse(setting, value) != base[setting]:
                    raise SettingError(
                        setting,
                        f"{setting} is {value}; it sets the model's shape, and is {base[setting]} in {this}: leave it "
                        "out, or train without continue_from",
                    )
            config = resolve(own_preset, {**base, **changes})
        names = None if has_default_names(prior.keypoint_names) else list(prior.keypoint_names)
        before = info.get("training", {}).get("continued_from") or {}
        lineage = [*before.get("lineage", []), this]
        continued = Continued(category=category, version=name, keypoint_names=names, lineage=lineage)
        return cls(own_preset, config, prior if config.needs_prior else None, continued)


@dataclass(frozen=True)
class TrainingRequest:
    """The content of a training request; its versions, folder and dataset are not looked up yet.

    Attributes:
        activate: whether the new version becomes the category's active one; "always" even if its quality is failed.
        webhook_url: not checked yet.
        settings: the model's settings as sent.
        plan: the complete settings; None if they depend on a version that the request names.
        folder: folder of pictures below the data root; None with an archive or a dataset.
        labels, boxes: path of a file below the data root, if named.
        dataset: id of the dataset to train on, if named.
        prior: the prior to start from, if sent; prior_from is the version whose prior to start from, if named.
        continue_from: the version to continue from, if named.
    """

    category: str
    activate: Activate
    webhook_url: Any
    preset: Any
    settings: Mapping[str, Any]
    plan: TrainingPlan | None
    folder: str | None = None
    labels: str | None = None
    boxes: str | None = None
    dataset: str | None = None
    prior: PriorValues | None = None
    prior_from: Any = None
    continue_from: Any = None

    @classmethod
    def parse(cls, values: Mapping[str, Any], **named: Any) -> TrainingRequest:
        """Check the fields of a form or the members of a JSON object.

        Args:
            values: category, preset, activate, webhook_url and the settings of the model.
            named: the attributes from folder to continue_from.

        Raises:
            BadField, BadCategoryName: category or activate is not valid, or two fields exclude each other.
            BadSetting, BadPrior: from TrainingPlan.make.
        """
        prior, prior_from, continue_from = (named.get(name) for name in ("prior", "prior_from", "continue_from"))
        if prior is not None and prior_from is not None:
            raise BadField("prior_from", "both prior and prior_from came; send one of them")
        if continue_from is not None and (prior is not None or prior_from is not None):
            raise BadField(
                "prior",
                "both a prior and continue_from came; send one: a continued training starts from its version's prior",
            )
        settings = {name: value for name, value in values.items() if value != ""}  # an empty field is a missing one
        category, preset, webhook_url = (settings.pop(name, None) for name in ("category", "preset", "webhook_url"))
        activate = str(settings.pop("activate", True)).strip().lower()
        choices: dict[str, Activate] = {"true": True, "false": False, "always": "always"}
        if activate not in choices:
            raise BadField("activate", f"activate is {activate[:80]!r}; it must be true, false or always")
        if not isinstance(category, str):
            raise BadField("category", "category is missing or not text; send the name of what the pictures show")
        is_complete = prior_from is None and continue_from is None
        plan = TrainingPlan.make(preset, settings, prior) if is_complete else None
        return cls(check_category(category.strip()), choices[activate], webhook_url, preset, settings, plan, **named)

    def fingerprint_values(self) -> dict[str, Any]:
        """Return everything the request says, except its files, as JSON values for its fingerprint.

        Versions, datasets and folders appear as the request names them, so a repeated request has the same
        fingerprint even if an alias was moved since. A default has the same fingerprint whether sent or left out,
        unless a version determines it.
        """
        always = ("category", "activate", "webhook_url", "dataset", "folder", "labels")
        values = {name: getattr(self, name) for name in (*always, "boxes", "prior_from", "continue_from")}
        if self.plan is None:
            settings = {"preset": self.preset, **self.settings}
        else:
            settings = {"preset": self.plan.preset, **self.plan.config.to_dict()}
        sent = {name: value for name, value in values.items() if name in always or value is not None}
        return {**sent, "settings": settings}

    def resolve(self, store: VersionStore) -> TrainingPlan:
        """Return the complete settings; look up the versions that the request names. Blocking.

        Raises:
            BadField, BadSetting, BadPrior, StoreCorrupt: see TrainingPlan.make and TrainingPlan.continue_from.
            UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName.
        """
        if self.plan is not None:
            return self.plan
        if self.continue_from is None:
            return TrainingPlan.make(self.preset, self.settings, _load_prior(self.prior_from, store))
        return TrainingPlan.continue_from(self.continue_from, self.category, self.preset, self.settings, store)


class JobUpload(UploadFolder):
    """The files of a request, already in the folder of the job that it may create."""

    def __init__(self, files: JobFiles, in_thread: InThread, max_archive_bytes: int) -> None:
        self.job_id = new_job_id()
        super().__init__(files.folder(self.job_id), in_thread)
        self.archive = self.file(files.archive(self.job_id).name, max_archive_bytes)
        self.labels = self.file(files.labels(self.job_id).name, MAX_LABELS_BYTES)
        self.boxes = self.file(files.boxes(self.job_id).name, MAX_BOXES_BYTES)
        self.prior = files.prior(self.job_id)
        self.start = files.start(self.job_id)


async def read_json(request: Request, upload: JobUpload, in_thread: InThread) -> TrainingRequest:
    """Read the JSON body of a training request, which names a folder or a dataset.

    Raises:
        BadRequest: the body is not a JSON object.
        BadField: a member is not valid.
        BadPrior: the prior is not valid.
        BadSetting, BadCategoryName: from TrainingRequest.parse.
    """
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise BadRequest("the body is not a JSON object; send one with category and folder, or category and dataset")
    settings = values.pop("settings", {})
    if not isinstance(settings, dict):
        raise BadField("settings", "settings is not a JSON object; send settings of the model by name")
    named: dict[str, Any] = {}
    for name, hint in (
        ("folder", "name a folder of pictures below the server's data root"),
        ("labels", "name a CSV or JSON file below the server's data root"),
        ("boxes", "name a CSV or JSON file below the server's data root"),
        ("dataset", "send the id of a dataset, as GET /datasets lists them"),
    ):
        named[name] = values.pop(name, None)
        if named[name] is not None and (not isinstance(named[name], str) or not named[name]):
            raise BadField(name, f"{name} is not text; {hint}")
    if named["dataset"] and named["folder"]:
        raise BadField("dataset", "both a dataset and a folder came; send one of them")
    if not named["dataset"] and not named["folder"]:
        raise BadField("folder", "no folder; name a folder of pictures below the server's data root, or name a dataset")
    named |= {name: values.pop(name, None) for name in ("prior", "prior_from", "continue_from")}
    if named["prior"] is not None:
        named["prior"] = await in_thread(check_prior, named["prior"])
    return TrainingRequest.parse({**settings, **values}, **named)


async def read_upload(request: Request, upload: JobUpload, in_thread: InThread) -> TrainingRequest:
    """Read the form of a training request; write its archive, labels and boxes to their files.

    Raises:
        BadArchive, BadLabels, BadBoxes: no archive came and no dataset is named, or a file is empty.
        BodyTooLarge: a file is longer than it may be.
        BadField: a field is not valid.
        BadPrior: the prior is not valid.
        BadSetting, BadCategoryName: from TrainingRequest.parse.
    """
    prior_field, archive = FileField(max_bytes=MAX_PRIOR_BYTES, or_text=True), upload.archive
    fields = {"archive": archive.field, "labels": upload.labels.field, "boxes": upload.boxes.field}
    form = await read_form(request, {**fields, "prior": prior_field})
    named: dict[str, Any] = {}
    for name in ("dataset", "prior_from", "continue_from"):
        text = form.fields.pop(name, None)
        named[name] = (text or "").strip() or None
        if text is not None and not named[name] and name != "dataset":  # e.g. an unset variable of a script
            raise BadField(name, f"{name} is empty; name a version, or leave the field out")
    uploaded = form.first("archive")
    if uploaded and named["dataset"]:
        raise BadField("dataset", "both a dataset and an archive came; send one of them")
    if not uploaded and not named["dataset"]:
        raise BadArchive(f"no archive came; {_SEND_ONE}, or name a dataset in the field dataset")
    if uploaded:
        if archive.is_empty:
            raise BadArchive(f"the archive is an empty file; {_SEND_ONE}")
        archive.name = PurePosixPath(uploaded.filename.replace("\\", "/")).name[-_MAX_NAME_LENGTH:]
    if form.first("labels") and upload.labels.is_empty:
        raise BadLabels("the labels are an empty file; send CSV or JSON, or leave the field labels out")
    if form.first("boxes") and upload.boxes.is_empty:
        raise BadBoxes("the boxes are an empty file; send CSV or JSON, or leave the field boxes out")
    part = form.first("prior")
    prior = await in_thread(read_prior, bytes(part.data)) if part else None
    return TrainingRequest.parse(form.fields, prior=prior, **named)


def _load_prior(reference: Any, store: VersionStore) -> PriorValues:
    """Load the prior of CATEGORY or CATEGORY@VERSION. Raises the errors of TrainingRequest.resolve."""
    if not isinstance(reference, str):
        raise BadField("prior_from", "prior_from is not text; send CATEGORY or CATEGORY@VERSION")
    category, at, version = reference.partition("@")
    return _read_prior(category, store.resolve(category, version if at else None), store)


def _read_prior(category: str, version: str, store: VersionStore) -> PriorValues:
    """Read a version's prior, with the names that users gave to its keypoints."""
    prior, names = store.prior(category, version), Additions(store).names(category, version)
    try:
        return check_prior({**prior, "keypoint_names": list(names)} if names else prior)
    except BadPrior as error:
        raise BadPrior(f"the prior of {category}@{version}: {error.detail}") from error
