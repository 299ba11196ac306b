"""What the gateway serves of published versions, read from disk; what never changes is read once."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic_core import to_json
from safetensors import safe_open

from service.contract.errors import StoreCorrupt
from service.contract.versions.additions import Additions, numbered
from service.contract.versions.aliases import ACTIVE
from service.contract.versions.store import VersionStore

from .landmarks import LandmarkMaps

_Stamp = tuple[int, int]
_Key = tuple[str, str, _Stamp, _Stamp | None]

_KEPT = 64
_PATHS = 1024
_ROUNDED = 6


@dataclass(frozen=True)
class Version:
    """A version as an estimate needs it: the side of the model's square, and the links of the prior, also as JSON.

    Attributes:
        names: of the keypoints, where somebody named them.
    """

    category: str
    name: str
    side: int
    links: list[dict[str, Any]]
    links_json: bytes
    has_memory: bool = True
    names: tuple[str, ...] | None = None
    num_keypoints: int = 0

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """What the keypoints are called: their names, else their numbers."""
        return self.names or tuple(f"keypoint_{index}" for index in range(self.num_keypoints))


class Versions:
    """Published versions. Blocking: for threads, of which many may call."""

    def __init__(self, store: VersionStore) -> None:
        self.store = store
        self.additions = Additions(store)
        self._kept: OrderedDict[_Key, Version] = OrderedDict()
        self._names: set[tuple[str, str]] = set()
        self._active: dict[str, tuple[tuple[int, int], str]] = {}
        self._maps: OrderedDict[tuple[str, str, str], tuple[_Stamp | None, LandmarkMaps]] = OrderedDict()
        self._lock = Lock()
        # asked for by each estimate, and put together from checked names each time otherwise
        self._pointer = lru_cache(_PATHS)(self._pointer)  # type: ignore[method-assign]
        self._stamped = lru_cache(_PATHS)(self._stamped)  # type: ignore[method-assign]

    def version(self, category: str, name: str | None = None) -> Version:
        """The version that a request means, by its name or an alias; the active one where None.

        Raises:
            BadCategoryName, BadVersionName, UnknownCategory, UnknownVersion, StoreCorrupt.
        """
        known = self.known(category, name)
        if known is not None:
            return known
        if name in (None, ACTIVE):
            name = self._active_name(category)
        name = self.store.resolve(category, name)
        key = self._key(category, name)
        version = self._load(category, name)
        with self._lock:
            self._kept[key] = version
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            self._names = {(category, name) for category, name, *_ in self._kept}
        return version

    def known(self, category: str, name: str | None = None) -> Version | None:
        """The same where it was looked up before and is as it was; reads nothing but the times of three files.

        Raises:
            BadCategoryName, BadVersionName, UnknownVersion.
        """
        if name in (None, ACTIVE):
            stamp = _stamp(self._pointer(category))
            active = self._active.get(category)
            if stamp is None or active is None or active[0] != stamp:
                return None
            name = active[1]
        assert name is not None
        with self._lock:
            if (category, name) not in self._names:
                return None
        key = self._key(category, name)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        return None

    def prior(self, category: str, name: str | None = None) -> dict[str, Any]:
        """The prior as the API shows it. Raises as :meth:`version`."""
        name = self.store.resolve(category, name)
        prior, info = self.store.prior(category, name), self.store.info(category, name)
        config = info.get("settings") or self.store.config(category, name)
        return shown_prior(category, name, prior, info, config, self.additions.names(category, name))

    def history(self, category: str, name: str | None = None) -> dict[str, Any]:
        """Snapshots of the prior along the training. Raises NoHistory, and as :meth:`version`."""
        name = self.store.resolve(category, name)
        history = self.store.history(category, name)
        return {"category": category, "version": name, "snapshots": _member(history, "snapshots")}

    def memory(self, category: str, name: str | None = None, *, vectors: bool = False) -> dict[str, Any]:
        """The memory as the API shows it, with all (M, V, D) vectors where asked for."""
        name = self.store.resolve(category, name)
        memory = {"category": category, "version": name, **self.store.memory(category, name)}
        if vectors and not _member(memory, "num_banks"):
            memory["vectors"] = []
        elif vectors:
            path = self.store.weights_path(category, name)
            try:
                with safe_open(path, framework="numpy") as tensors:
                    codebook = tensors.get_tensor("memory.codebook")
            except Exception as error:  # safetensors raises its own kind, OSError and more
                raise StoreCorrupt(
                    f"the codebook of version '{name}' of category '{category}' can't be read"
                ) from error
            memory["vectors"] = codebook.astype("float64").round(_ROUNDED).tolist()
        return memory

    def categories(self) -> list[str]:
        """Names of the categories, sorted."""
        return self.store.categories()

    def entry(self, category: str) -> dict[str, Any]:
        """A category in the list of priors."""
        names = self.store.versions(category)
        active = self.store.active(category)
        entry = {"category": category, "version": active, "num_versions": len(names)}
        # a damaged version must not hide the other categories; asked for by itself it says what is wrong
        with suppress(StoreCorrupt):
            if active is not None:
                entry["num_keypoints"] = self.store.prior(category, active).get("num_keypoints")
                entry["created_at"] = self.store.info(category, active).get("created_at")
        return entry

    def version_entry(self, category: str, name: str, pointers: dict[str, str]) -> dict[str, Any]:
        """A version in the list of a category's versions; without its facts where it is damaged.

        Args:
            pointers: the aliases of the category, with their versions.
        """
        info: dict[str, Any] = {}
        # a damaged version must not hide the others; asked for by itself it says what is wrong
        with suppress(StoreCorrupt):
            info = self.store.info(category, name)
        facts = {key: info.get(key) for key in ("created_at", "job_id", "preset")}
        aliases = [alias for alias, version in pointers.items() if version == name]
        before = info.get("training", {}).get("continued_from")
        facts["continued_from"] = f"{before['category']}@{before['version']}" if before else None
        return {"category": category, "version": name, "active": ACTIVE in aliases, "aliases": aliases, **facts}

    def _active_name(self, category: str) -> str | None:
        """The active version, read anew only when its file was replaced; None where there is no such file."""
        stamp = _stamp(self._pointer(category))
        if stamp is None:
            return None
        known = self._active.get(category)
        if known is None or known[0] != stamp:
            name = self.store.active(category)
            if name is None:
                return None
            known = self._active[category] = (stamp, name)
        return known[1]

    def landmarks(self, version: Version, name: str) -> LandmarkMaps:
        """A set of landmarks of a version, read anew only when its file was replaced.

        Raises:
            BadLandmarks, UnknownLandmarks, StoreCorrupt.
        """
        key = (version.category, version.name, name)
        stamp = _stamp(self.additions.landmarks_path(*key))
        with self._lock:
            known = self._maps.get(key)
            if known is not None and known[0] == stamp:
                self._maps.move_to_end(key)
                return known[1]
        found = LandmarkMaps.load(self.additions.landmarks(*key))
        with self._lock:
            self._maps[key] = (stamp, found)
            while len(self._maps) > _KEPT:
                self._maps.popitem(last=False)
        return found

    def keypoint_names(self, category: str, name: str | None = None) -> dict[str, Any]:
        """The names of a version's keypoints as the API shows them. Raises as :meth:`version`."""
        name = self.store.resolve(category, name)
        prior = self.store.prior(category, name)
        names = self.additions.names(category, name) or prior.get("keypoint_names")
        count = int(_member(prior, "num_keypoints"))
        names = list(names or (f"keypoint_{index}" for index in range(count)))
        return {"category": category, "version": name, "names": names}

    def _key(self, category: str, name: str) -> _Key:
        folder, names = self._stamped(category, name)
        return category, name, self.store.stamp(category, name, folder), _stamp(names)

    def _pointer(self, category: str) -> str:
        return str(self.store.path(category, "any").parents[1] / "active.json")

    def _stamped(self, category: str, name: str) -> tuple[str, str]:
        return str(self.store.path(category, name)), str(self.additions.names_path(category, name))

    def _load(self, category: str, name: str) -> Version:
        config, prior = self.store.config(category, name), self.store.prior(category, name)
        links = [{**link, "weight": float(f"{link['weight']:.6g}")} for link in _member(prior, "links")]
        has_memory = config.get("method", "ppl") != "autolink"
        names: Any = self.additions.names(category, name) or prior.get("keypoint_names")
        named = None if numbered(names) else tuple(names)
        side, count = int(_member(config, "image_size")), int(_member(prior, "num_keypoints"))
        return Version(category, name, side, links, to_json(links), has_memory, named, count)


def shown_prior(
    category: str,
    name: str,
    prior: dict[str, Any],
    info: dict[str, Any],
    config: dict[str, Any],
    names: tuple[str, ...] | None,
) -> dict[str, Any]:
    """A version's prior as the API shows it.

    Args:
        prior, info, config: its prior.json, version.json and settings.
        names: that users gave to the keypoints.
    """
    training = {key: info.get(key) for key in ("job_id", "created_at", "preset")}
    return {
        "category": category,
        "version": name,
        "num_keypoints": _member(prior, "num_keypoints"),
        "keypoint_names": names or prior.get("keypoint_names"),
        "keypoint_prior": _member(prior, "keypoint_prior"),
        "connectivity_prior": _member(prior, "connectivity_prior"),
        "links": _member(prior, "links"),
        "link_width": _member(prior, "link_width"),
        # the first release had one method and one mode, and did not say so
        "keypoint_prior_source": prior.get("keypoint_prior_source", "memory"),
        "method": config.get("method", "ppl"),
        "mode": info.get("training", {}).get("mode", "stills"),
        "settings": config,
        "training": {**training, **info.get("training", {})},
        "evaluation": info.get("evaluation"),
    }


def _stamp(path: str | Path) -> _Stamp | None:
    """Tells a file from the one that took its place; None where there is none."""
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
