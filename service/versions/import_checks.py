"""Check that the documents and the weights of an imported version are what a training would have written."""

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
from model.network.architecture import expected_tensors
from service.contract.errors import BadKeypointNames, BadLandmarks, BadPrior, BadVersionFile, BadVersionName
from service.contract.jobs.files import check_prior
from service.contract.jobs.job import Continued
from service.contract.versions.additions import check_names
from service.contract.versions.export_manifest import LANDMARKS, NAMES, OPTIONAL, REQUIRED, WEIGHTS, Manifest
from service.contract.versions.landmarks import LandmarkSet
from service.contract.versions.store import check_version

from .reader import prior_document
from .schemas import History, Memory, Prior

_VERSION_FORMAT = 1  # of a version's folder
_MAX_LISTED = 3
_MAX_MAP_WEIGHT = 1e9  # keeps the landmarks of any pose finite

Model = TypeVar("Model", bound=BaseModel)


class _Base(Continued):
    """The version that a training continued, with bounds on what an import may hold."""

    category: str = Field(max_length=64)
    version: str = Field(max_length=64)
    lineage: list[Annotated[str, Field(max_length=129)]] = Field(default_factory=list, max_length=1000)


class _Info(BaseModel):
    """The parts of version.json that are read."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    version: str
    job_id: str | None = Field(None, max_length=64)
    created_at: str | None = Field(None, max_length=40)
    preset: str | None = Field(None, max_length=40)
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] | None = None

    @field_validator("training")
    @classmethod
    def _check_base(cls, value: dict[str, Any]) -> dict[str, Any]:
        base = value.get("continued_from")
        if base is not None:  # lists, comparisons and continued trainings read its members
            _Base.model_validate(base)
        return value


@dataclass(frozen=True)
class CheckedVersion:
    """A version that can be published.

    Attributes:
        origin: its category where it was exported.
        names: of the keypoints, if users named them.
    """

    version: str
    origin: str
    config: PPLConfig
    info: _Info
    names: tuple[str, ...] | None
    landmarks: list[LandmarkSet]

    def info_for(self, category: str, manifest: Manifest) -> dict[str, Any]:
        """Return version.json as it is published in a category here."""
        parts = (*REQUIRED, *OPTIONAL)
        digests = {name: facts.sha256 for name, facts in manifest.files.items() if name in parts}
        del digests["version.json"]
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "format": _VERSION_FORMAT,
            "category": category,
            **self.info.model_dump(exclude_none=True),
            "settings": self.config.to_dict(),
            "imported": {"from": self.origin, "at": now},
            "files": digests,
        }


def check_documents(documents: dict[str, Any], manifest: Manifest) -> CheckedVersion:
    """Check the JSON documents of a version, by file name, each alone and against the others.

    Raises:
        BadVersionFile: a document is not valid; the detail names its file.
    """
    document = documents["version.json"]
    info = validate(_Info, document, "version.json")
    try:
        version = check_version(info.version)
    except BadVersionName as error:
        raise BadVersionFile(f"version.json: {error.detail}") from error
    if version != manifest.version or document.get("format") != _VERSION_FORMAT:
        raise BadVersionFile(
            f"version.json is of version {version!r} and format {str(document.get('format'))[:40]}; "
            f"expected {manifest.version!r} and {_VERSION_FORMAT}"
        )
    try:
        config = PPLConfig.from_dict(documents["config.json"])
    except SettingError as error:
        raise BadVersionFile(f"config.json: {error}") from error
    _check_prior(documents["prior.json"], config, info)
    _check_memory(documents["memory.json"], config)
    if "history.json" in documents:
        _check_history(documents["history.json"], config)
    names, landmarks = _check_names(documents, config), _check_landmarks(documents, config)
    return CheckedVersion(version, manifest.category, config, info, names, landmarks)


def check_weights(path: Path, config: PPLConfig) -> None:
    """Check the names, types and shapes of the tensors against the settings, and that all values are finite.

    Raises:
        BadVersionFile: the file is not safetensors, or holds the weights of another model.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
            json.loads((opened.metadata() or {})["facts"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadVersionFile(f"{WEIGHTS} does not hold weights of this program: {str(error)[:200]}") from error
    expected = expected_tensors(config)
    for verb, names in (("lacks", expected.keys() - found.keys()), ("has unknown", found.keys() - expected.keys())):
        if names:
            listed = ", ".join(sorted(names)[:_MAX_LISTED])[:200]
            raise BadVersionFile(f"{WEIGHTS} {verb} {listed}, by its config.json")
    for name, (kind, shape) in expected.items():
        if found[name] != (kind, shape):
            raise BadVersionFile(
                f"{name} in {WEIGHTS} is {found[name][0]} of shape {list(found[name][1])}; by its config.json it must "
                f"be {kind} of shape {list(shape)}"
            )
    with safe_open(path, framework="numpy") as opened:
        for name in expected:
            if not np.isfinite(opened.get_tensor(name)).all():
                raise BadVersionFile(f"{name} in {WEIGHTS} holds infinity or NaN")


def _check_prior(prior: dict[str, Any], config: PPLConfig, info: _Info) -> None:
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
    document = prior_document("any", "any", prior, info.model_dump(), config.to_dict(), None)
    validate(Prior, document, "prior.json or version.json")


def _check_memory(document: dict[str, Any], config: PPLConfig) -> None:
    memory = validate(Memory, {"category": "any", "version": "any", **document}, "memory.json")
    sizes = (0, 0, 0) if config.method == "autolink" else (config.num_banks, config.bank_size, config.token_dim)
    if (memory.num_banks, memory.bank_size, memory.token_dim) != sizes:
        raise BadVersionFile("memory.json has other sizes than config.json")
    num_banks, bank_size, _ = sizes
    prototypes_fit = all(
        len(pose.keypoints) == config.num_keypoints
        and len(pose.codes) == num_banks
        and all(0 <= code < bank_size for code in pose.codes)
        for pose in memory.prototypes
    )
    counts_fit = [len(counts) for counts in memory.use_counts] == [bank_size] * num_banks
    if not counts_fit or not prototypes_fit or memory.vectors:
        raise BadVersionFile("memory.json does not fit its own sizes")


def _check_history(document: dict[str, Any], config: PPLConfig) -> None:
    history = validate(History, {"category": "any", "version": "any", **document}, "history.json")
    for snapshot in history.snapshots:
        points = snapshot.keypoint_prior
        if len(snapshot.link_weights) != config.num_links or len(points or ()) not in (0, config.num_keypoints):
            raise BadVersionFile(f"history.json at step {snapshot.step} has another number of keypoints")


def _check_names(documents: dict[str, Any], config: PPLConfig) -> tuple[str, ...] | None:
    if NAMES not in documents:
        return None
    try:
        return check_names(documents[NAMES].get("names") or [], config.num_keypoints)
    except BadKeypointNames as error:
        raise BadVersionFile(f"{NAMES}: {error.detail}") from error


def _check_landmarks(documents: dict[str, Any], config: PPLConfig) -> list[LandmarkSet]:
    sets = []
    for name, document in documents.items():
        if not (match := LANDMARKS.fullmatch(name)):
            continue
        try:
            landmarks = LandmarkSet.parse(document)
        except BadLandmarks as error:
            raise BadVersionFile(f"{name}: {error.detail}") from error
        if (landmarks.name, landmarks.num_keypoints) != (match[1], config.num_keypoints):
            raise BadVersionFile(f"{name} has another name or another number of keypoints")
        if any(abs(weight) > _MAX_MAP_WEIGHT for rows in landmarks.maps for row in rows for weight in row):
            raise BadVersionFile(f"{name} has a weight beyond {_MAX_MAP_WEIGHT:g} in its maps; export it again")
        sets.append(landmarks)
    return sets


def validate(model: type[Model], document: Any, name: str) -> Model:
    """Parse a document of the file `name`. Raise BadVersionFile with its first error."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadVersionFile(f"{name}: {where[:80]}: {first['msg'][:200]}") from error
