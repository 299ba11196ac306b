"""Whether the documents and the weights of an imported version are what a training would have written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open

from model.config import PPLConfig, SettingError
from model.version.weight_shapes import expected_tensors
from service.contract.errors import BadKeypointNames, BadLandmarks, BadPrior, BadVersionFile, BadVersionName
from service.contract.jobs.job import Continued
from service.contract.versions.additions import check_names
from service.contract.versions.export_manifest import LANDMARKS, NAMES, OPTIONAL, REQUIRED, WEIGHTS, Manifest
from service.contract.versions.landmarks import LandmarkSet
from service.contract.versions.start_prior import check_prior
from service.contract.versions.store import check_version

from .reader import shown_prior
from .schemas import History, Memory, Prior

_VERSION_FORMAT = 1  # of a version's folder
_SHOWN = 3
_LARGEST = 1e9  # weight of a landmark's map: the landmarks of a pose are numbers for certain

Model = TypeVar("Model", bound=BaseModel)


class _Before(Continued):
    """The version that a training went on from."""

    category: str = Field(max_length=64)
    version: str = Field(max_length=64)
    lineage: list[Annotated[str, Field(max_length=129)]] = Field(default_factory=list, max_length=1000)


class _Info(BaseModel):
    """version.json, as far as anything reads it."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    version: str
    job_id: str | None = Field(None, max_length=64)
    created_at: str | None = Field(None, max_length=40)
    preset: str | None = Field(None, max_length=40)
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] | None = None

    @field_validator("training")
    @classmethod
    def _comes_from_versions(cls, value: dict[str, Any]) -> dict[str, Any]:
        before = value.get("continued_from")
        if before is not None:  # lists, differences and trainings that go on from it read its members
            _Before.model_validate(before)
        return value


@dataclass(frozen=True)
class Checked:
    """What is known of a version that can be published.

    Attributes:
        origin: its category where it was exported.
        names: given to its keypoints, where anybody did.
    """

    version: str
    origin: str
    config: PPLConfig
    info: _Info
    names: tuple[str, ...] | None
    landmarks: list[LandmarkSet]

    def info_for(self, category: str, manifest: Manifest) -> dict[str, Any]:
        """version.json as it is published here: what was told of the training, and what is known for sure."""
        parts = (*REQUIRED, *OPTIONAL)
        sums = {name: facts.sha256 for name, facts in manifest.files.items() if name in parts}
        del sums["version.json"]
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "format": _VERSION_FORMAT,
            "category": category,
            **self.info.model_dump(exclude_none=True),
            "settings": self.config.to_dict(),
            "imported": {"from": self.origin, "at": now},
            "files": sums,
        }


def check_documents(documents: dict[str, Any], manifest: Manifest) -> Checked:
    """The JSON of a version, each member alone and against the others.

    Raises:
        BadVersionFile: something is not what it must be; the detail names the file.
    """
    info = _model(_Info, documents["version.json"], "version.json")
    try:
        version = check_version(info.version)
    except BadVersionName as error:
        raise BadVersionFile(f"version.json: {error.detail}") from error
    if version != manifest.version or documents["version.json"].get("format") != _VERSION_FORMAT:
        raise BadVersionFile(
            f"version.json is of version {version!r} and format {str(documents['version.json'].get('format'))[:40]}; "
            f"expected {manifest.version!r} and {_VERSION_FORMAT}"
        )
    try:
        config = PPLConfig.from_dict(documents["config.json"])
    except SettingError as error:
        raise BadVersionFile(f"config.json: {error}") from error
    _check_prior(documents, config, info)
    _check_memory(documents["memory.json"], config)
    if "history.json" in documents:
        _check_history(documents["history.json"], config)
    return Checked(version, manifest.category, config, info, _names(documents, config), _sets(documents, config))


def check_weights(path: Path, config: PPLConfig) -> None:
    """The weights against the settings: the tensors' names, types and shapes, and that all values are numbers.

    Raises:
        BadVersionFile: these are no safetensors, or those of another model.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
            json.loads((opened.metadata() or {})["facts"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadVersionFile(f"{WEIGHTS} holds no weights of this program: {str(error)[:200]}") from error
    wanted = expected_tensors(config)
    for told, names in (("lacks", wanted.keys() - found.keys()), ("holds an unknown", found.keys() - wanted.keys())):
        if names:
            raise BadVersionFile(f"{WEIGHTS} {told} {', '.join(sorted(names)[:_SHOWN])[:200]}, by its config.json")
    for name, expected in wanted.items():
        if found[name] != expected:
            raise BadVersionFile(
                f"{name} in {WEIGHTS} is {found[name][0]} of shape {list(found[name][1])}; by its config.json it must "
                f"be {expected[0]} of shape {list(expected[1])}"
            )
    _check_finite(path)


def _check_finite(path: Path) -> None:
    """One value that is none makes every pose so. Raises BadVersionFile."""
    with safe_open(path, framework="numpy") as opened:
        for name in opened.keys():  # noqa: SIM118 (no mapping)
            if not np.isfinite(opened.get_tensor(name)).all():
                raise BadVersionFile(f"{name} in {WEIGHTS} holds infinity or no number")


def _check_prior(documents: dict[str, Any], config: PPLConfig, info: _Info) -> None:
    prior = documents["prior.json"]
    try:
        values = check_prior(prior)
    except BadPrior as error:
        raise BadVersionFile(f"prior.json: {error.detail}") from error
    if len(values.keypoint_prior) != config.num_keypoints:
        raise BadVersionFile(
            f"prior.json has {len(values.keypoint_prior)} keypoints and config.json says {config.num_keypoints}"
        )
    for name in ("num_keypoints", "connectivity_prior", "links", "link_width"):
        if prior.get(name) is None:
            raise BadVersionFile(f"prior.json lacks {name!r}")
    shown = shown_prior("any", "any", prior, info.model_dump(), config.to_dict(), None)
    _model(Prior, shown, "prior.json or version.json")


def _check_memory(document: dict[str, Any], config: PPLConfig) -> None:
    memory = _model(Memory, {"category": "any", "version": "any", **document}, "memory.json")
    sizes = (config.num_banks, config.bank_size, config.token_dim)
    wanted = (0, 0, 0) if config.method == "autolink" else sizes
    if (memory.num_banks, memory.bank_size, memory.token_dim) != wanted:
        raise BadVersionFile("memory.json has other sizes than config.json")
    banks, size = wanted[:2]
    poses = all(
        len(pose.keypoints) == config.num_keypoints
        and len(pose.codes) == banks
        and all(0 <= code < size for code in pose.codes)
        for pose in memory.prototypes
    )
    if [len(counts) for counts in memory.use_counts] != [size] * banks or not poses or memory.vectors:
        raise BadVersionFile("memory.json does not fit its own sizes")


def _check_history(document: dict[str, Any], config: PPLConfig) -> None:
    history = _model(History, {"category": "any", "version": "any", **document}, "history.json")
    for snapshot in history.snapshots:
        points = snapshot.keypoint_prior
        if len(snapshot.link_weights) != config.num_links or len(points or ()) not in (0, config.num_keypoints):
            raise BadVersionFile(f"history.json at step {snapshot.step} is of another number of keypoints")


def _names(documents: dict[str, Any], config: PPLConfig) -> tuple[str, ...] | None:
    if NAMES not in documents:
        return None
    try:
        return check_names(documents[NAMES].get("names") or [], config.num_keypoints)
    except BadKeypointNames as error:
        raise BadVersionFile(f"{NAMES}: {error.detail}") from error


def _sets(documents: dict[str, Any], config: PPLConfig) -> list[LandmarkSet]:
    found = []
    for name, document in documents.items():
        if not (match := LANDMARKS.fullmatch(name)):
            continue
        try:
            one = LandmarkSet.parse(document)
        except BadLandmarks as error:
            raise BadVersionFile(f"{name}: {error.detail}") from error
        if (one.name, one.num_keypoints) != (match[1], config.num_keypoints):
            raise BadVersionFile(f"{name} is of another name or another number of keypoints")
        if any(abs(weight) > _LARGEST for rows in one.maps for row in rows for weight in row):
            raise BadVersionFile(f"{name} has a weight beyond {_LARGEST:g} in its maps; no fit gives such a one")
        found.append(one)
    return found


def _model(model: type[Model], document: Any, name: str) -> Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise BadVersionFile(f"{name}: {where[:80]}: {fault['msg'][:200]}") from error
