"""Check the parts of an imported version, each alone and against the others: a training must be able to write them.

No number is trusted because it is finite. What prior.json and memory.json state must follow from the weights, so that
what the API shows is what the model does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from model.config import PPLConfig
from model.network.architecture import CLUSTERS_START, FEATURE_WIDTHS, expected_tensors, named_features
from model.scoring.presence import Presence
from model.version.bank_poses import decode
from model.version.prior_values import PriorValues, read_names, read_prior
from service.contract.errors import BadVersionFile, BadVersionName, StoreCorrupt
from service.contract.jobs.job import Continued
from service.contract.versions.export_manifest import LANDMARKS, NAMES, PRESENCE, WEIGHTS, Manifest
from service.contract.versions.landmarks import LandmarkSet
from service.contract.versions.quality import Quality
from service.contract.versions.store import check_version

from .reader import prior_document
from .schemas import History, Memory, Prior

VERSION_FORMAT = 1  # of a version's folder
_ANY = {"category": "any", "version": "any"}
_MAX_DEPTH = 32  # of JSON: what is nested deeper could be read but not be sent again
_MAX_DIGITS = 19  # of an integer
_MAX_NUMBER = 1e6  # of weights and of what follows from them; trained ones stay below 100
_MAX_COUNT = 2**53
_MAX_MAP_WEIGHT = 1e9  # keeps the landmarks of any pose finite
_MAX_PROTOTYPES = 256
_SURPRISE_SCALES = (1e-6, 1e3)
_POSE_TOLERANCE = 0.01  # in [-1, 1]; float32 on another machine differs far less
_WEIGHT_TOLERANCE = 1e-3  # relative
_LENGTH_TOLERANCE = 1e-3

Tensors = dict[str, NDArray[Any]]
Model = TypeVar("Model", bound=BaseModel)


class _Base(Continued):
    """The version that a training continued, with bounds on what an import may hold."""

    category: str = Field(max_length=64)
    version: str = Field(max_length=64)
    lineage: list[Annotated[str, Field(max_length=129)]] = Field(default_factory=list, max_length=1000)


class Info(BaseModel):
    """The parts of version.json that are read."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    version: str
    job_id: str | None = Field(None, max_length=64)
    created_at: str | None = Field(None, max_length=40)
    preset: str | None = Field(None, max_length=40)
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    quality: Quality | None = None


def parse_json(name: str, data: bytes) -> dict[str, Any]:
    """Return the object in the bytes of a file. Raises BadVersionFile."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"it has {constant}; expected finite numbers")

    def parse_int(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise ValueError(f"it has an integer of {len(digits)} digits; at most {_MAX_DIGITS} are allowed")
        return int(digits)

    try:
        value = json.loads(data.decode(), parse_constant=refuse, parse_int=parse_int)
        _check_depth(value)
        # written as a response will be: refuses 1e999 and lone surrogates
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadVersionFile(f"{name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise BadVersionFile(f"{name} is not a JSON object")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [part for part in level if isinstance(part, dict | list)]
        level = [value for part in inner for value in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")


def check_documents(documents: dict[str, Any], manifest: Manifest) -> tuple[Info, PPLConfig]:
    """Check the JSON documents of a version, by file name, each alone and against the others."""
    document = documents["version.json"]
    with naming("version.json"):
        info = _validate(Info, document)
        check_version(info.version)
        if info.version != manifest.version or document.get("format") != VERSION_FORMAT:
            raise ValueError(
                f"it is of version {info.version!r} and format {str(document.get('format'))[:40]}; "
                f"expected {manifest.version!r} and {VERSION_FORMAT}"
            )
    base = info.training.get("continued_from")
    if base is not None:  # lists, comparisons and continued trainings read its members
        with naming("version.json: training: continued_from"):
            _validate(_Base, base)
    with naming("config.json"):
        config = PPLConfig.from_dict(documents["config.json"])
    with naming("prior.json"):
        _check_prior(read_prior(documents["prior.json"]), config)
    with naming("prior.json or version.json"):
        _validate(Prior, prior_document("any", "any", documents["prior.json"], document, config.to_dict(), None))
    with naming("memory.json"):
        _check_memory(_validate(Memory, {**_ANY, **documents["memory.json"]}), config)
    if "history.json" in documents:
        with naming("history.json"):
            _check_history(_validate(History, {**_ANY, **documents["history.json"]}), config)
    if PRESENCE in documents:
        with naming(PRESENCE):
            _check_presence(Presence.from_json(documents[PRESENCE]), config)
    if NAMES in documents:
        with naming(NAMES):
            read_names(documents[NAMES].get("names") or [], config.num_keypoints)
    for name, document in documents.items():
        if match := LANDMARKS.fullmatch(name):
            with naming(name):
                _check_landmarks(_validate(LandmarkSet, document), match[1], config)
    return info, config


def _validate(model: type[Model], document: Any) -> Model:
    """Check a JSON value strictly: text is not a number, though pydantic's default mode reads "nan" as one."""
    return model.model_validate_json(json.dumps(document), strict=True)


def _check_prior(prior: PriorValues, config: PPLConfig) -> None:
    count = len(prior.keypoint_prior)
    if count != config.num_keypoints:
        raise ValueError(f"it has {count} keypoints and config.json says {config.num_keypoints}")
    source = "mean_pose" if config.method == "autolink" else config.keypoint_prior
    if prior.keypoint_prior_source != source:
        raise ValueError(f"its keypoint_prior_source is {prior.keypoint_prior_source}; by config.json it is {source}")
    if not np.isclose(prior.link_width, config.link_width):
        raise ValueError(f"its link_width is {prior.link_width:g}; by config.json it is {config.link_width:g}")


def _check_memory(memory: Memory, config: PPLConfig) -> None:
    sizes = (0, 0, 0) if config.method == "autolink" else (config.num_banks, config.bank_size, config.token_dim)
    num_banks, bank_size, _ = sizes
    if len(memory.prototypes) > _MAX_PROTOTYPES:
        raise ValueError(f"it has {len(memory.prototypes)} prototypes; at most {_MAX_PROTOTYPES} are allowed")
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
    low, high = _SURPRISE_SCALES
    if memory.surprise_scale is not None and not low <= memory.surprise_scale <= high:
        raise ValueError(f"its surprise_scale is {memory.surprise_scale:g}; expected a number from {low:g} to {high:g}")


def _check_history(history: History, config: PPLConfig) -> None:
    for snapshot in history.snapshots:
        points = snapshot.keypoint_prior
        if len(snapshot.link_weights) != config.num_links or len(points or ()) not in (0, config.num_keypoints):
            raise ValueError(
                f"at step {snapshot.step} it has another number of keypoints than config.json, {config.num_keypoints}"
            )
        numbers = [*snapshot.link_weights, *(value for point in points or () for value in point)]
        if not all(abs(number) <= _MAX_NUMBER for number in numbers):
            raise ValueError(f"at step {snapshot.step} it has a number beyond {_MAX_NUMBER:g}")


def _check_presence(presence: Presence, config: PPLConfig) -> None:
    width = 2 * config.base_width if config.features == "none" else FEATURE_WIDTHS[config.features][-1]
    if len(presence.mean) != width:
        raise ValueError(f"it describes pictures by {len(presence.mean)} numbers; by config.json there are {width}")
    # an inverse of small variances is large
    for name, most in (("precision", 1e12), ("mean", _MAX_NUMBER), ("centre", _MAX_NUMBER), ("weights", _MAX_NUMBER)):
        if np.abs(getattr(presence, name)).max() > most:
            raise ValueError(f"its {name} has a number beyond {most:g}")
    if presence.scale.min() < 1e-9 or presence.scale.max() > _MAX_NUMBER:
        raise ValueError(f"its scale has a number outside of 1e-9 to {_MAX_NUMBER:g}")


def _check_landmarks(landmarks: LandmarkSet, name: str, config: PPLConfig) -> None:
    if (landmarks.name, landmarks.num_keypoints) != (name, config.num_keypoints):
        raise ValueError(
            f"it is {landmarks.name[:80]!r} for {landmarks.num_keypoints} keypoints; expected {name!r} for "
            f"{config.num_keypoints}"
        )
    if any(abs(weight) > _MAX_MAP_WEIGHT for rows in landmarks.maps for row in rows for weight in row):
        raise ValueError(f"it has a weight beyond {_MAX_MAP_WEIGHT:g} in its maps; export it again")


def read_weights(path: Path, config: PPLConfig) -> Tensors:
    """Check names, types, shapes and values of the tensors; return those that prior.json and memory.json follow from.

    Raises:
        BadVersionFile: they do not fit the settings, or a value is not finite or beyond what a training reaches.
    """
    expected = {name: f"{kind} of shape {list(shape)}" for name, (kind, shape) in expected_tensors(config).items()}
    kept: Tensors = {}
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
                tensor = opened.get_tensor(name)
                _check_values(name, tensor)
                if name in ("link_logits", "own_prior", "memory.codebook", "memory.use_counts") or name.startswith(
                    "memory.decoder."
                ):
                    kept[name] = tensor
    except (SafetensorError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise BadVersionFile(f"{WEIGHTS} does not hold weights of this program: {str(error)[:200]}") from error
    return kept


def _check_values(name: str, tensor: NDArray[Any]) -> None:
    low, high = float(-_MAX_NUMBER), float(_MAX_NUMBER)
    if tensor.dtype == np.bool_:
        tensor, low, high = tensor.view(np.uint8), 0, 1  # torch does not define what other bytes mean
    elif tensor.dtype == np.int64:
        low, high = 0, _MAX_COUNT
    elif name.endswith((".running_var", ".clusters.spread", "memory.hits")):
        low = 0
    elif name.endswith(".clusters.factor"):  # a negative one would never fade out
        low, high = 0, CLUSTERS_START
    if not np.isfinite(tensor).all():
        raise BadVersionFile(f"{name} in {WEIGHTS} holds infinity or NaN")
    if tensor.size and not (low <= tensor.min() and tensor.max() <= high):
        raise BadVersionFile(
            f"{name} in {WEIGHTS} holds numbers from {tensor.min():g} to {tensor.max():g}; no training reaches such "
            f"ones, expected {low:g} to {high:g}"
        )
    if name.endswith(".clusters.directions"):
        lengths = np.linalg.norm(tensor.astype(np.float64), axis=1)
        wrong = lengths[(lengths != 0) & (np.abs(lengths - 1) > _LENGTH_TOLERANCE)]
        if wrong.size:
            raise BadVersionFile(
                f"{name} in {WEIGHTS} has the length {wrong[0]:g}; expected 1, or 0 if none was fitted"
            )


def check_agreement(tensors: Tensors, documents: Mapping[str, Any], config: PPLConfig) -> None:
    """Check that prior.json and memory.json say what the weights do. Raises BadVersionFile."""
    prior, memory = read_prior(documents["prior.json"]), documents["memory.json"]
    logits = config.link_scale * tensors["link_logits"].astype(np.float64)
    weights, stated = np.logaddexp(0, logits), np.asarray(prior.link_weights)
    if (np.abs(weights - stated) > _WEIGHT_TOLERANCE * np.maximum(weights, 1e-3)).any():
        raise BadVersionFile(f"prior.json has other link weights than {WEIGHTS}; export the version again")
    poses: list[tuple[str, Any, NDArray[Any]]] = []
    if "own_prior" in tensors:
        poses.append(("prior.json", prior.keypoint_prior, tensors["own_prior"]))
    if "memory.codebook" in tensors:
        counts = np.asarray(memory["use_counts"], dtype=np.float64)
        if not np.array_equal(counts, tensors["memory.use_counts"]):
            raise BadVersionFile(f"memory.json has other use_counts than {WEIGHTS}; export the version again")
        codebook = tensors["memory.codebook"].astype(np.float64)
        banks = np.arange(len(codebook))
        vectors = [codebook.mean(axis=1), *(codebook[banks, pose["codes"]] for pose in memory["prototypes"])]
        with np.errstate(all="ignore"):  # what overflows differs
            decoded = decode(tensors, np.stack(vectors))
        if "own_prior" not in tensors:
            poses.append(("prior.json", prior.keypoint_prior, decoded[0]))
        poses += [
            ("memory.json", pose["keypoints"], found)
            for pose, found in zip(memory["prototypes"], decoded[1:], strict=True)
        ]
    for name, given, found in poses:
        if not (np.abs(np.asarray(given) - found) <= _POSE_TOLERANCE).all():
            raise BadVersionFile(f"{name} has another pose than {WEIGHTS} give; export the version again")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Convert the errors of a check of the file `name` into BadVersionFile."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadVersionFile(f"{name}: {where[:80]}: {first['msg'][:200]}") from error
    except (BadVersionName, StoreCorrupt, ValueError) as error:
        raise BadVersionFile(f"{name}: {str(error)[:300]}") from error
