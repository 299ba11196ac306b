"""Read published versions from disk. What does not change is read once."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json
from safetensors import safe_open

from model.version.bank_poses import vary_bank
from model.version.prior_values import default_names, read_prior
from service.contract.errors import NoMemory, StoreCorrupt
from service.contract.versions.additions import Additions, has_default_names
from service.contract.versions.store import ACTIVE, VersionStore
from service.http.problems import BadField

from .landmarks import LandmarkMaps

_MAX_CACHED = 64
_MAX_PATHS = 1024
_DIGITS = 6

Value = TypeVar("Value")


@dataclass(frozen=True)
class Version:
    """The parts of a version that an estimate needs.

    Attributes:
        side: side of the model's square in pixels.
        skeleton: the links that one would draw, the strongest first.
        links: those that answers list, the skeleton or all of the prior's; links_json is their JSON.
        keypoint_names: the given names, else keypoint_0, keypoint_1, …; names is None without given names.
        locate, align: settings of its training.
    """

    category: str
    name: str
    side: int
    skeleton: list[dict[str, Any]]
    links: list[dict[str, Any]]
    links_json: bytes
    all_links: list[dict[str, Any]]
    has_memory: bool
    keypoint_names: tuple[str, ...]
    names: tuple[str, ...] | None
    locate: str = "auto"
    align: str = "off"

    def listing_all_links(self) -> Version:
        """Return the version with answers that list all links."""
        return replace(self, links=self.all_links, links_json=to_json(self.all_links))


class Versions:
    """The published versions. Its methods block and are thread-safe.

    Methods that take a name accept an alias as well; None means the active version. They raise BadCategoryName,
    BadVersionName, UnknownCategory, UnknownVersion and StoreCorrupt.
    """

    def __init__(self, store: VersionStore) -> None:
        self.store = store
        self.additions = Additions(store)
        self._loaded: _FileCache[Version] = _FileCache()
        self._active: _FileCache[str] = _FileCache()
        self._maps: _FileCache[LandmarkMaps] = _FileCache()
        # every estimate needs these paths, and building them from checked names is slow
        self._active_path = lru_cache(_MAX_PATHS)(self._active_path)  # type: ignore[method-assign]
        self._version_paths = lru_cache(_MAX_PATHS)(self._version_paths)  # type: ignore[method-assign]

    def version(self, category: str, name: str | None = None) -> Version:
        """Load a version."""
        cached = self.find_cached(category, name)
        if cached is not None:
            return cached
        pointer = _file_identity(self._active_path(category)) if name in (None, ACTIVE) else None
        name = self.store.resolve(category, name)
        if pointer is not None:
            self._active.put((category,), pointer, name)
        identity = self._version_identity(category, name)
        return self._loaded.put((category, name), identity, self._load(category, name))

    def find_cached(self, category: str, name: str | None = None) -> Version | None:
        """Return a version that was loaded before and has not changed, after reading the times of three files only."""
        if name in (None, ACTIVE):
            name = self._active.get((category,), _file_identity(self._active_path(category)))
        if name is None or (category, name) not in self._loaded:
            return None
        return self._loaded.get((category, name), self._version_identity(category, name))

    def prior(self, category: str, name: str | None = None, *, all_links: bool = True) -> dict[str, Any]:
        """Return a prior as the API shows it, with all links or those of its skeleton."""
        name = self.store.resolve(category, name)
        prior, info = self.store.prior(category, name), self.store.info(category, name)
        config = info.get("settings") or self.store.config(category, name)
        document = prior_document(category, name, prior, info, config, self.additions.names(category, name))
        return document if all_links else document | {"links": _skeleton(prior, document["links"])}

    def history(self, category: str, name: str | None = None) -> dict[str, Any]:
        """Return the snapshots of a prior during training. Raises NoHistory and those of `VersionStore.resolve`."""
        name = self.store.resolve(category, name)
        history = self.store.history(category, name)
        return {"category": category, "version": name, "snapshots": _member(history, "snapshots")}

    def memory(
        self,
        category: str,
        name: str | None = None,
        *,
        vectors: bool = False,
        bank: int | None = None,
        prototype: int | None = None,
    ) -> dict[str, Any]:
        """Return a memory as the API shows it.

        Args:
            vectors: add all (M, V, D) vectors.
            bank: add the poses of a prototype, or of the keypoint prior, with each vector of this bank.

        Raises:
            NoMemory: a bank is named, and the version has none.
            BadField: it has no such bank or prototype.
        """
        name = self.store.resolve(category, name)
        memory = {"category": category, "version": name, **self.store.memory(category, name)}
        prototypes, num_banks = _member(memory, "prototypes"), _member(memory, "num_banks")
        if bank is not None:
            _check_variation(f"version '{name}' of category '{category}'", bank, num_banks, prototype, len(prototypes))
        if vectors:
            codebook = self._memory_tensors(category, name)["memory.codebook"] if num_banks else np.empty(0)
            memory["vectors"] = codebook.astype("float64").round(_DIGITS).tolist()
        if bank is not None:
            codes = None if prototype is None else prototypes[prototype]["codes"]
            poses = vary_bank(self._memory_tensors(category, name), bank, codes)
            keypoints = poses.astype("float64").round(_DIGITS).tolist()
            memory["variation"] = {"bank": bank, "prototype": prototype, "keypoints": keypoints}
        return memory

    def _memory_tensors(self, category: str, name: str) -> dict[str, NDArray[Any]]:
        """Read the codebook and the decoder of a memory. Raises StoreCorrupt."""
        try:
            with safe_open(self.store.weights_path(category, name), framework="numpy") as file:
                wanted = [key for key in file.keys() if key.startswith(("memory.codebook", "memory.decoder."))]  # noqa: SIM118
                return {"memory.codebook": file.get_tensor("memory.codebook")} | {
                    key: file.get_tensor(key) for key in wanted
                }
        except Exception as error:  # safetensors raises its own error, OSError and more
            raise StoreCorrupt(f"the memory of version '{name}' of category '{category}' can't be read") from error

    def landmarks(self, version: Version, name: str) -> LandmarkMaps:
        """Load a set of landmarks of a version. Raises BadLandmarks, UnknownLandmarks, StoreCorrupt."""
        key = (version.category, version.name, name)
        identity = _file_identity(self.additions.landmarks_path(*key))
        cached = self._maps.get(key, identity)
        if cached is not None:
            return cached
        stored = self.additions.landmarks(*key)
        maps = LandmarkMaps(tuple(stored.landmarks), np.array(stored.maps, dtype=np.float64))
        return self._maps.put(key, identity, maps)

    def keypoint_names(self, category: str, name: str | None = None) -> dict[str, Any]:
        """Return the names of a version's keypoints as the API shows them."""
        name = self.store.resolve(category, name)
        return {"category": category, "version": name, "names": list(self._names(category, name))}

    def entry(self, category: str) -> dict[str, Any]:
        """Return a category's entry in the list of priors."""
        names = self.store.versions(category)
        active = self.store.active(category)
        entry = {"category": category, "version": active, "num_versions": len(names)}
        # a damaged version must not hide the others; a request for it reports the damage
        with suppress(StoreCorrupt):
            if active is not None:
                entry["num_keypoints"] = self.store.prior(category, active).get("num_keypoints")
                entry["created_at"] = self.store.info(category, active).get("created_at")
        return entry

    def version_entry(self, category: str, name: str, aliases: dict[str, str]) -> dict[str, Any]:
        """Return a version's entry in the list of versions, without details if it is damaged.

        `aliases` are all those of the category, with their versions.
        """
        info: dict[str, Any] = {}
        with suppress(StoreCorrupt):  # as in entry
            info = self.store.info(category, name)
        own = [alias for alias, version in aliases.items() if version == name]
        base = info.get("training", {}).get("continued_from")
        return {
            "category": category,
            "version": name,
            "active": ACTIVE in own,
            "aliases": own,
            **{key: info.get(key) for key in ("created_at", "job_id", "preset")},
            "continued_from": f"{base['category']}@{base['version']}" if base else None,
        }

    def _active_path(self, category: str) -> str:
        return str(self.store.path(category, "any").parents[1] / "active.json")

    def _version_paths(self, category: str, name: str) -> tuple[str, str]:
        return str(self.store.path(category, name)), str(self.additions.names_path(category, name))

    def _version_identity(self, category: str, name: str) -> Any:
        folder, names = self._version_paths(category, name)
        return self.store.identity(category, name, folder), _file_identity(names)

    def _load(self, category: str, name: str) -> Version:
        config, prior = self.store.config(category, name), self.store.prior(category, name)
        links = [{**link, "weight": float(f"{link['weight']:.6g}")} for link in _member(prior, "links")]
        skeleton, names = _skeleton(prior, links), self._names(category, name)
        return Version(
            category=category,
            name=name,
            side=int(_member(config, "image_size")),
            skeleton=skeleton,
            links=skeleton,
            links_json=to_json(skeleton),
            all_links=links,
            has_memory=config.get("method", "ppl") != "autolink",
            keypoint_names=names,
            names=None if has_default_names(names) else names,
            locate=str(config.get("locate", "auto")),
            align=str(config.get("align", "off")),
        )

    def _names(self, category: str, name: str) -> tuple[str, ...]:
        prior = self.store.prior(category, name)
        names = self.additions.names(category, name) or prior.get("keypoint_names")
        return tuple(names or default_names(int(_member(prior, "num_keypoints"))))


class _FileCache(Generic[Value]):
    """The values used last, each valid while the identity of its files stays the same. Thread-safe."""

    def __init__(self) -> None:
        self._values: OrderedDict[tuple[str, ...], tuple[Any, Value]] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._values

    def get(self, key: tuple[str, ...], identity: Any) -> Value | None:
        """Return a value, unless its files were replaced."""
        with self._lock:
            found = self._values.get(key)
            if found is None or identity is None or found[0] != identity:
                return None
            self._values.move_to_end(key)
            return found[1]

    def put(self, key: tuple[str, ...], identity: Any, value: Value) -> Value:
        """Store a value and return it."""
        with self._lock:
            self._values[key] = (identity, value)
            self._values.move_to_end(key)
            if len(self._values) > _MAX_CACHED:
                self._values.popitem(last=False)
        return value


def prior_document(
    category: str,
    name: str,
    prior: dict[str, Any],
    info: dict[str, Any],
    config: dict[str, Any],
    names: tuple[str, ...] | None,
) -> dict[str, Any]:
    """Build a prior as the API shows it from prior.json, version.json, the settings and the users' keypoint names."""
    training = {key: info.get(key) for key in ("job_id", "created_at", "preset")}
    return {
        "category": category,
        "version": name,
        "num_keypoints": _member(prior, "num_keypoints"),
        "keypoint_names": names or prior.get("keypoint_names"),
        "keypoint_prior": _member(prior, "keypoint_prior"),
        "connectivity_prior": _member(prior, "connectivity_prior"),
        "links": _member(prior, "links"),
        "skeleton": [[link["i"], link["j"]] for link in _skeleton(prior, _member(prior, "links"))],
        "link_width": _member(prior, "link_width"),
        # versions of the first release lack these; it had one method and one mode
        "keypoint_prior_source": prior.get("keypoint_prior_source", "memory"),
        "method": config.get("method", "ppl"),
        "mode": info.get("training", {}).get("mode", "stills"),
        "settings": config,
        "training": {**training, **info.get("training", {})},
        "evaluation": info.get("evaluation"),
        "quality": info.get("quality"),
    }


def _skeleton(prior: dict[str, Any], links: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the links, given the strongest first, that the prior's skeleton has. Raises StoreCorrupt."""
    try:
        drawn = set(read_prior(prior).skeleton)
    except ValueError as error:
        raise StoreCorrupt(f"prior.json can't be read: {error}") from error
    return [link for link in links if (link["i"], link["j"]) in drawn]


def _check_variation(label: str, bank: int, banks: int, prototype: int | None, prototypes: int) -> None:
    if not banks:
        raise NoMemory(f"bank is {bank}, and {label} has no memory: it was trained with autolink; leave bank out")
    for field, value, count in (("bank", bank, banks), ("prototype", prototype, prototypes)):
        if value is not None and value >= count:
            raise BadField(field, f"{field} is {value}; {label} has {field}s 0 to {count - 1}")


def _file_identity(path: str | Path) -> tuple[int, int] | None:
    """Return what differs between a file and its replacement; None if there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def _member(document: dict[str, Any], name: str) -> Any:
    try:
        return document[name]
    except KeyError as error:
        raise StoreCorrupt(f"a published version lacks {name!r}") from error
