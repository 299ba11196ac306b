"""Import an exported version: unpack and check its zip, and publish it. Blocking.

The zip is not trusted: neither names nor sizes, checksums or numbers. A version is published only if a training here
could have written all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from model.config import PPLConfig
from model.network.architecture import expected_tensors, named_features
from model.scoring.presence import Presence
from model.version.prior_values import read_names, read_prior
from service.contract.durable_files import is_disk_full, sha256_of, write_json
from service.contract.errors import (
    ArchiveTooLarge,
    BadArchive,
    BadVersionFile,
    BadVersionName,
    EncryptedArchive,
    StoreCorrupt,
    UnsafeArchive,
)
from service.contract.jobs.job import Continued
from service.contract.jobs.progress import timestamp
from service.contract.media.archives import ArchiveLimits, Member, detect_kind, iter_members
from service.contract.versions.export_manifest import (
    FORMAT,
    LANDMARKS,
    MANIFEST,
    MAX_ADDITION_BYTES,
    MAX_JSON_BYTES,
    MAX_MEMBERS,
    NAMES,
    OPTIONAL,
    PRESENCE,
    REQUIRED,
    WEIGHTS,
    FileFacts,
    Manifest,
    is_member,
)
from service.contract.versions.landmarks import LandmarkSet
from service.contract.versions.quality import Quality
from service.contract.versions.store import ADDITIONS, VersionStore, check_version

from .reader import prior_document
from .schemas import History, Memory, Prior

_VERSION_FORMAT = 1  # of a version's folder
_ANY = {"category": "any", "version": "any"}
_PARTS = (*REQUIRED, *OPTIONAL)
_EXPECTED = "expected a zip from GET /priors/{category}/versions/{version}/export"
_MAX_MANIFEST_BYTES = 2**20
_MAX_MAP_WEIGHT = 1e9  # keeps the landmarks of any pose finite


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
    quality: Quality | None = None


def import_version(store: VersionStore, archive: Path, folder: Path, category: str, max_bytes: int) -> str:
    """Publish the version in a zip.

    Args:
        archive: the zip.
        folder: to unpack into; it must not exist yet, and lie on the data root's disk. The caller removes it.
        category: to publish in; it may differ from the category of its origin.
        max_bytes: limit for all unpacked files together.

    Returns:
        The version's name, the same as at its origin.

    Raises:
        BadVersionFile: the zip is not an exported version, is damaged, or comes from a later release.
        UnsafeArchive, EncryptedArchive, ArchiveTooLarge: from reading the zip.
        VersionExists, NameTaken: the category has a version or an alias of this name.
    """
    limits = ArchiveLimits(MAX_MEMBERS + 1, max_bytes, float("inf"), _MAX_MANIFEST_BYTES)
    try:
        if detect_kind(archive) != "zip":
            raise BadVersionFile(f"the upload is not a zip; {_EXPECTED}")
        manifest = _read_manifest(archive, limits)
        _unpack(archive, folder, manifest, limits)
    except (UnsafeArchive, EncryptedArchive, ArchiveTooLarge):
        raise
    except BadArchive as error:
        raise BadVersionFile(f"the upload is damaged; {_EXPECTED}") from error
    documents = {
        name: _parse_json(name, _path_of(folder, name).read_bytes()) for name in manifest.files if name != WEIGHTS
    }
    info, config = _check_documents(documents, manifest)
    _check_weights(folder / WEIGHTS, config)
    published = {
        "format": _VERSION_FORMAT,
        "category": category,
        **info.model_dump(exclude_none=True),
        "settings": config.to_dict(),
        "imported": {"from": manifest.category, "at": timestamp()},
        "files": {name: manifest.files[name].sha256 for name in _PARTS[1:] if name in manifest.files},
    }
    write_json(folder / "version.json", published)
    store.publish(folder, category, info.version)
    return info.version


def _read_manifest(archive: Path, limits: ArchiveLimits) -> Manifest:
    with closing(iter_members(archive, "zip", limits)) as listing:  # closing it closes the zip
        member = next((member for member in listing if member.name == MANIFEST), None)
        if member is None:
            raise BadVersionFile(f"the zip has no {MANIFEST}; {_EXPECTED}")
        if member.size > _MAX_MANIFEST_BYTES:
            raise BadVersionFile(f"{MANIFEST} has {member.size} bytes; {_MAX_MANIFEST_BYTES} are allowed")
        with _unpacking(member):
            data = member.read()
    document = _parse_json(MANIFEST, data)
    found = document.get("format")
    if found != FORMAT:
        what_to_do = "use a later one" if type(found) is int and found > FORMAT else _EXPECTED
        raise BadVersionFile(f"{MANIFEST} has format {found!r:.40}; this release reads format {FORMAT}: {what_to_do}")
    with _naming(MANIFEST):
        manifest = Manifest.model_validate(document)
    unknown = [name for name in manifest.files if not is_member(name)]
    missing = [name for name in REQUIRED if name not in manifest.files]
    if unknown or missing:
        why = f"lists {unknown[0][:80]!r}, which no version has" if unknown else f"does not list {missing[0]}"
        raise BadVersionFile(f"{MANIFEST} {why}; {_EXPECTED}")
    return manifest


def _unpack(archive: Path, folder: Path, manifest: Manifest, limits: ArchiveLimits) -> None:
    """Unpack the files that the manifest lists. Raise BadVersionFile for repeated, unlisted and missing ones."""
    seen: set[str] = set()
    for member in iter_members(archive, "zip", limits):
        if member.name in seen:
            raise BadVersionFile(f"{member.name[:80]!r} is twice in the zip")
        seen.add(member.name)
        if member.name == MANIFEST:
            continue
        if member.name not in manifest.files:
            raise BadVersionFile(f"{member.name[:80]!r} is in the zip and not in its {MANIFEST}")
        _copy(member, _path_of(folder, member.name), manifest.files[member.name])
    missing = sorted(manifest.files.keys() - seen)
    if missing:
        raise BadVersionFile(f"{missing[0][:80]!r} is in {MANIFEST} and not in the zip")


def _path_of(folder: Path, name: str) -> Path:
    """Return where :meth:`VersionStore.publish` expects a member: what users added lies apart."""
    return folder / name if name in _PARTS else folder / ADDITIONS / name


def _copy(member: Member, path: Path, listed: FileFacts) -> None:
    """Unpack a member, and compare it with the manifest."""
    max_bytes = MAX_JSON_BYTES if member.name in _PARTS else MAX_ADDITION_BYTES
    if member.name != WEIGHTS and member.size > max_bytes:
        raise BadVersionFile(f"{member.name} has {member.size} bytes; {max_bytes} are allowed")
    if member.size != listed.size:
        raise BadVersionFile(
            f"{member.name} has {member.size} bytes and {MANIFEST} says {listed.size}; export it again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with _unpacking(member):
        member.copy(path)
    if sha256_of(path) != listed.sha256:
        raise BadVersionFile(f"{member.name} has another SHA-256 than {MANIFEST} says: it was damaged; export it again")


def _parse_json(name: str, data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} in it")

    try:
        value = json.loads(data.decode(), parse_constant=refuse)
        # written as a response will be: refuses 1e999 and lone surrogates
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadVersionFile(f"{name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise BadVersionFile(f"{name} is not a JSON object")
    return value


def _check_documents(documents: dict[str, Any], manifest: Manifest) -> tuple[_Info, PPLConfig]:
    """Check the JSON documents of a version, by file name, each alone and against the others."""
    document = documents["version.json"]
    with _naming("version.json"):
        info = _Info.model_validate(document)
        check_version(info.version)
        if info.version != manifest.version or document.get("format") != _VERSION_FORMAT:
            raise ValueError(
                f"it is of version {info.version!r} and format {str(document.get('format'))[:40]}; "
                f"expected {manifest.version!r} and {_VERSION_FORMAT}"
            )
    base = info.training.get("continued_from")
    if base is not None:  # lists, comparisons and continued trainings read its members
        with _naming("version.json: training: continued_from"):
            _Base.model_validate(base)
    with _naming("config.json"):
        config = PPLConfig.from_dict(documents["config.json"])
    with _naming("prior.json"):
        count = len(read_prior(documents["prior.json"]).keypoint_prior)
        if count != config.num_keypoints:
            raise ValueError(f"it has {count} keypoints and config.json says {config.num_keypoints}")
    with _naming("prior.json or version.json"):
        shown = prior_document("any", "any", documents["prior.json"], info.model_dump(), config.to_dict(), None)
        Prior.model_validate(shown)
    with _naming("memory.json"):
        _check_memory(Memory.model_validate({**_ANY, **documents["memory.json"]}), config)
    if "history.json" in documents:
        with _naming("history.json"):
            _check_history(History.model_validate({**_ANY, **documents["history.json"]}), config)
    if PRESENCE in documents:
        with _naming(PRESENCE):
            Presence.from_json(documents[PRESENCE])
    if NAMES in documents:
        with _naming(NAMES):
            read_names(documents[NAMES].get("names") or [], config.num_keypoints)
    for name, document in documents.items():
        if match := LANDMARKS.fullmatch(name):
            with _naming(name):
                _check_landmarks(LandmarkSet.model_validate(document), match[1], config)
    return info, config


def _check_memory(memory: Memory, config: PPLConfig) -> None:
    sizes = (0, 0, 0) if config.method == "autolink" else (config.num_banks, config.bank_size, config.token_dim)
    num_banks, bank_size, _ = sizes
    prototypes_fit = all(
        len(pose.keypoints) == config.num_keypoints
        and len(pose.codes) == num_banks
        and all(0 <= code < bank_size for code in pose.codes)
        for pose in memory.prototypes
    )
    counts_fit = [len(counts) for counts in memory.use_counts] == [bank_size] * num_banks
    sizes_fit = (memory.num_banks, memory.bank_size, memory.token_dim) == sizes
    if not (sizes_fit and counts_fit and prototypes_fit) or memory.vectors or memory.variation:
        raise ValueError("it does not fit the sizes in config.json")


def _check_history(history: History, config: PPLConfig) -> None:
    for snapshot in history.snapshots:
        points = snapshot.keypoint_prior
        if len(snapshot.link_weights) != config.num_links or len(points or ()) not in (0, config.num_keypoints):
            raise ValueError(f"at step {snapshot.step} it has another number of keypoints")


def _check_landmarks(landmarks: LandmarkSet, name: str, config: PPLConfig) -> None:
    if (landmarks.name, landmarks.num_keypoints) != (name, config.num_keypoints):
        raise ValueError("it has another name or another number of keypoints")
    if any(abs(weight) > _MAX_MAP_WEIGHT for rows in landmarks.maps for row in rows for weight in row):
        raise ValueError(f"it has a weight beyond {_MAX_MAP_WEIGHT:g} in its maps; export it again")


def _check_weights(path: Path, config: PPLConfig) -> None:
    """Check the names, types and shapes of the tensors against the settings, and that all values are finite."""
    expected = {name: f"{kind} of shape {list(shape)}" for name, (kind, shape) in expected_tensors(config).items()}
    try:
        with safe_open(path, framework="numpy") as opened:
            features = json.loads((opened.metadata() or {})["facts"]).get("features")
            if features != (own := named_features(config)):
                raise BadVersionFile(
                    f"{WEIGHTS} was trained with the features {str(features)[:200]}; here they are {own}"
                )
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            found = {name: f"{part.get_dtype()} of shape {part.get_shape()}" for name, part in parts.items()}
            for name in sorted(expected.keys() | found.keys()):
                came, due = found.get(name, "absent"), expected.get(name, "absent")
                if came != due:
                    raise BadVersionFile(f"{name[:80]} in {WEIGHTS} is {came}; by its config.json it must be {due}")
                if not np.isfinite(opened.get_tensor(name)).all():
                    raise BadVersionFile(f"{name} in {WEIGHTS} holds infinity or NaN")
    except (SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise BadVersionFile(f"{WEIGHTS} does not hold weights of this program: {str(error)[:200]}") from error


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Raise what a check of the file `name` raises as BadVersionFile."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadVersionFile(f"{name}: {where[:80]}: {first['msg'][:200]}") from error
    except (BadVersionName, StoreCorrupt, ValueError) as error:
        raise BadVersionFile(f"{name}: {str(error)[:300]}") from error


@contextmanager
def _unpacking(member: Member) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile may raise anything for hostile bytes
        if is_disk_full(error):
            raise
        raise BadVersionFile(f"{member.name} can't be unpacked ({str(error)[:100]}); {_EXPECTED}") from error
