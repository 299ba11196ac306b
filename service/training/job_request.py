"""Training requests: a form with uploads, or JSON that names files on the server, parsed and checked once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import Request

from model.config import DEFAULT_PRESET, PRESETS, SHAPING, PPLConfig, SettingError, parse, resolve
from model.version.prior_values import PriorValues
from service.contract.errors import BadArchive, BadLabels, BadPrior, BadRequest, BadSetting, StoreCorrupt
from service.contract.jobs.files import MAX_LABELS_BYTES, MAX_PRIOR_BYTES, check_prior, check_use, read_prior
from service.contract.jobs.job import Continued
from service.contract.versions.additions import Additions, has_default_names
from service.contract.versions.store import VersionStore, check_category
from service.http.multipart import FileField, InThread, UploadFile, read_form
from service.http.problems import BadField

_MAX_NAME_LENGTH = 200
_SEND_ONE = "send a zip, tar or tar.gz of pictures or clips, or one video, in the field archive (curl -F archive=@FILE)"


@dataclass(frozen=True)
class BaseVersion:
    """The version whose training a job continues.

    Attributes:
        settings: those it was trained with.
        weights: path of its weights.
        continued: what the job's record keeps of it.
    """

    settings: Mapping[str, Any]
    preset: str
    weights: Path
    prior: PriorValues
    continued: Continued

    @classmethod
    def load(cls, reference: Any, category: str, store: VersionStore) -> BaseVersion:
        """Load the version that `continue_from` names: one of the job's category, or CATEGORY@VERSION. Blocking.

        Raises:
            BadField: the reference is not text.
            UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName, StoreCorrupt.
        """
        if not isinstance(reference, str) or not reference.strip():
            raise BadField("continue_from", "continue_from is not text; send a version, an alias or CATEGORY@VERSION")
        other, at, version = reference.strip().rpartition("@")
        category = other if at else category
        name = store.resolve(category, version)
        info, prior = store.info(category, name), _read_prior(category, name, store)
        names: Any = prior.get("keypoint_names")
        before = info.get("training", {}).get("continued_from") or {}
        return cls(
            settings=store.config(category, name),
            preset=str(info.get("preset")),
            weights=store.weights_path(category, name),
            prior=check_prior(prior),
            continued=Continued(
                category=category,
                version=name,
                keypoint_names=None if has_default_names(names) else list(names),
                lineage=[*before.get("lineage", []), f"{category}@{name}"],
            ),
        )

    def resolve_settings(self, preset: str | None, changes: Mapping[str, Any]) -> tuple[str, PPLConfig]:
        """Return the preset and the complete settings of a training that continues from this version.

        Settings not in `changes` are the version's. Links stay as sharp as they were at its end: `link_width_start`
        is its `link_width`.

        Raises:
            BadSetting: a setting is out of range, or shapes the model and differs from the version's.
            StoreCorrupt: the version's own settings are not valid.
        """
        own = {**self.settings, "link_width_start": self.settings.get("link_width")}
        this = f"{self.continued.category}@{self.continued.version}"
        try:
            base = PPLConfig.from_dict({name: value for name, value in own.items() if value is not None}).to_dict()
        except SettingError as error:
            raise StoreCorrupt(f"the settings of {this} can't be read: {error}") from error
        own_preset = self.preset if self.preset in PRESETS else DEFAULT_PRESET
        if preset not in (None, own_preset):
            raise BadSetting(f"preset is {preset!r}; {this} has the preset {own_preset}: leave preset out")
        try:
            for setting, value in changes.items():
                if setting in SHAPING and parse(setting, value) != base[setting]:
                    raise BadSetting(
                        f"{setting} is {value}; it sets the model's shape, and is {base[setting]} in {this}: leave it "
                        "out, or train without continue_from",
                        extra={"field": setting},
                    )
            return own_preset, resolve(own_preset, {**base, **changes})
        except SettingError as error:
            raise BadSetting(str(error), extra={"field": error.name}) from error


@dataclass(frozen=True)
class TrainingPlan:
    """The complete settings of a training, in their ranges, and the prior that fits them.

    Attributes:
        prior: to start from, if any.
        base: the version to continue from, if any.
    """

    preset: str
    config: PPLConfig
    prior: PriorValues | None
    base: BaseVersion | None = None

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
        try:
            config = resolve(preset, settings)
        except SettingError as error:
            raise BadSetting(str(error), extra={"field": error.name}) from error
        check_use(prior, config)
        return cls(preset, config, prior)

    def check_processes(self, processes: int) -> None:
        """Raise BadSetting unless `processes` training processes can share a batch evenly."""
        try:
            self.config.check_processes(processes)
        except SettingError as error:
            raise BadSetting(str(error), extra={"field": error.name}) from error


@dataclass(frozen=True)
class TrainingRequest:
    """The content of a training request; its versions, folder and dataset are not looked up yet.

    Attributes:
        activate: whether the new version becomes the category's active one.
        webhook_url: not checked yet.
        settings: of the model, as sent.
        folder: of pictures, below the data root; None with an archive or a dataset.
        labels: path of a file below the data root, if named.
        dataset: id of the dataset to train on, if named.
        prior: to start from, if it was sent.
        prior_from: the version whose prior to start from, if named.
        continue_from: the version to continue from, if named.
        plan: the complete settings; None if they depend on a version that the request names.
    """

    category: str
    activate: bool
    webhook_url: Any
    preset: Any
    settings: Mapping[str, Any]
    plan: TrainingPlan | None
    folder: str | None = None
    labels: str | None = None
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
        prior, prior_from = named.get("prior"), named.get("prior_from")
        if prior is not None and prior_from is not None:
            raise BadField("prior_from", "both prior and prior_from came; send one of them")
        settings = {name: value for name, value in values.items() if value != ""}  # an empty field is a missing one
        category, preset, webhook_url = (settings.pop(name, None) for name in ("category", "preset", "webhook_url"))
        activate = _parse_bool("activate", settings.pop("activate", True))
        if not isinstance(category, str):
            raise BadField("category", "category is missing or not text; send the name of what the pictures show")
        is_complete = prior_from is None and named.get("continue_from") is None
        plan = TrainingPlan.make(preset, settings, prior) if is_complete else None
        return cls(check_category(category.strip()), activate, webhook_url, preset, settings, plan, **named)

    def fingerprint_values(self) -> dict[str, Any]:
        """Return everything the request says, except its files, as JSON values for its fingerprint.

        Versions, datasets and folders appear as the request names them, so a repeated request has the same
        fingerprint even if an alias was moved since. A default has the same fingerprint whether sent or left out,
        unless a version determines it.
        """
        names = {"prior_from": self.prior_from, "continue_from": self.continue_from}
        if self.plan is None:
            settings = {"preset": self.preset, **self.settings}
        else:
            settings = {"preset": self.plan.preset, **self.plan.config.to_dict()}
        return {
            "category": self.category,
            "activate": self.activate,
            "webhook_url": self.webhook_url,
            "dataset": self.dataset,
            "folder": self.folder,
            "labels": self.labels,
            **{field: name for field, name in names.items() if name is not None},
            "settings": settings,
        }

    def resolve(self, store: VersionStore) -> TrainingPlan:
        """Return the complete settings, with the versions that the request names as they are now. Blocking.

        Raises:
            BadField: a version's name is not text, or a prior came with continue_from.
            BadSetting, BadPrior: from TrainingPlan.make and BaseVersion.resolve_settings.
            UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName, StoreCorrupt.
        """
        if self.plan is not None:
            return self.plan
        prior = self.prior if self.prior_from is None else _load_prior(self.prior_from, store)
        if self.continue_from is None:
            return TrainingPlan.make(self.preset, self.settings, prior)
        base = BaseVersion.load(self.continue_from, self.category, store)
        preset, config = base.resolve_settings(None if self.preset is None else str(self.preset), self.settings)
        if prior is not None:
            raise BadField(
                "prior",
                "both a prior and continue_from came; send one: a continued training starts from its version's prior",
            )
        return TrainingPlan(preset, config, base.prior if config.needs_prior else None, base)


async def read_json(request: Request, archive: UploadFile, labels: UploadFile, in_thread: InThread) -> TrainingRequest:
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
    folder, labels_path = values.pop("folder", None), values.pop("labels", None)
    dataset = _check_dataset(values.pop("dataset", None), "a folder" if folder is not None else None)
    if not dataset and (not isinstance(folder, str) or not folder):
        raise BadField(
            "folder",
            "folder is missing or not text; name a folder of pictures below the server's data root, or name a dataset",
        )
    if labels_path is not None and (not isinstance(labels_path, str) or not labels_path):
        raise BadField("labels", "labels is not text; name a CSV or JSON file below the server's data root")
    prior, prior_from, continue_from = (values.pop(name, None) for name in ("prior", "prior_from", "continue_from"))
    return TrainingRequest.parse(
        {**settings, **values},
        folder=folder,
        labels=labels_path,
        dataset=dataset,
        prior=None if prior is None else await in_thread(check_prior, prior),
        prior_from=prior_from,
        continue_from=continue_from,
    )


async def read_upload(
    request: Request, archive: UploadFile, labels: UploadFile, in_thread: InThread
) -> TrainingRequest:
    """Read the form of a training request; write its archive and labels to their files.

    Raises:
        BadArchive, BadLabels: no archive came and no dataset is named, or a file is empty.
        BodyTooLarge: a file is longer than it may be.
        BadField: a field is not valid.
        BadPrior: the prior is not valid.
        BadSetting, BadCategoryName: from TrainingRequest.parse.
    """
    fields = {
        "archive": FileField(1, lambda: _more_than_one("archive"), archive.write, archive.max_bytes),
        "labels": FileField(1, lambda: _more_than_one("labels"), labels.write, MAX_LABELS_BYTES),
        "prior": FileField(1, lambda: _more_than_one("prior"), None, MAX_PRIOR_BYTES, or_text=True),
    }
    form = await read_form(request, fields)
    for name in ("prior_from", "continue_from"):
        if name in form.fields and not form.fields[name].strip():  # e.g. an unset variable of a script
            raise BadField(name, f"{name} is empty; name a version, or leave the field out")
    dataset, prior_from, continue_from = (
        form.fields.pop(name, "").strip() or None for name in ("dataset", "prior_from", "continue_from")
    )
    uploaded = form.first("archive")
    _check_dataset(dataset, "an archive" if uploaded else None)
    if uploaded is None and not dataset:
        raise BadArchive(f"no archive came; {_SEND_ONE}, or name a dataset in the field dataset")
    if uploaded:
        if archive.is_empty:
            raise BadArchive(f"the archive is an empty file; {_SEND_ONE}")
        archive.name = PurePosixPath(uploaded.filename.replace("\\", "/")).name[-_MAX_NAME_LENGTH:]
    if form.first("labels") and labels.is_empty:
        raise BadLabels("the labels are an empty file; send CSV or JSON, or leave the field labels out")
    part = form.first("prior")
    prior = await in_thread(read_prior, bytes(part.data)) if part else None
    return TrainingRequest.parse(
        form.fields, dataset=dataset, prior=prior, prior_from=prior_from, continue_from=continue_from
    )


def _check_dataset(dataset: Any, other: str | None) -> str | None:
    """Return the dataset's id, if one is named. Raise BadField if `other` pictures came as well."""
    if dataset is None:
        return None
    if not isinstance(dataset, str) or not dataset:
        raise BadField("dataset", "dataset is not text; send the id of a dataset, as GET /datasets lists them")
    if other:
        raise BadField("dataset", f"both a dataset and {other} came; send one of them")
    return dataset


def _load_prior(reference: Any, store: VersionStore) -> PriorValues:
    """Load the prior of CATEGORY or CATEGORY@VERSION. Raises as TrainingRequest.resolve."""
    if not isinstance(reference, str):
        raise BadField("prior_from", "prior_from is not text; send CATEGORY or CATEGORY@VERSION")
    category, at, version = reference.partition("@")
    name = store.resolve(category, version if at else None)
    try:
        return check_prior(_read_prior(category, name, store))
    except BadPrior as error:
        raise BadPrior(f"the prior of {category}@{name}: {error.detail}") from error


def _read_prior(category: str, version: str, store: VersionStore) -> dict[str, Any]:
    """Read a version's prior, with the names that users gave to its keypoints."""
    prior, names = store.prior(category, version), Additions(store).names(category, version)
    return {**prior, "keypoint_names": list(names)} if names else prior


def _parse_bool(name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise BadField(name, f"{name} is {str(value)[:80]!r}; it must be true or false")
    return text == "true"


def _more_than_one(name: str) -> BadField:
    return BadField(name, f"more than one file came in the field {name}; send one")
