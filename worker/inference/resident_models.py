"""Models kept resident by version."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from model.predictor import Predictor
from model.version.tensor_files import CheckpointError
from service.contract.errors import StoreCorrupt
from service.contract.versions.store import VersionStore
from worker.metrics import InferenceMetrics

logger = logging.getLogger(__name__)


class ModelRegistry:
    """The models in memory; at the limit the least recently used makes room.

    Not for several threads: a worker does one batch at a time.

    Args:
        limit: versions in memory at most.
        load: reads the model in a version's folder.
    """

    def __init__(
        self, store: VersionStore, limit: int, load: Callable[[Path], Predictor], metrics: InferenceMetrics
    ) -> None:
        self._store = store
        self._limit = limit
        self._load = load
        self._metrics = metrics
        self._resident: OrderedDict[tuple[str, str, tuple[int, int]], Predictor] = OrderedDict()

    def get(self, category: str, version: str) -> Predictor:
        """The model of a version, read from disk if it is not resident.

        Raises:
            UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName.
            StoreCorrupt: its files are missing or damaged.
        """
        key = (category, version, self._store.stamp(category, version))
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        while len(self._resident) >= self._limit:  # first make room, then load: memory is what the limit is for
            (old_category, old_version, _), _ = self._resident.popitem(last=False)
            self._metrics.evictions.inc()
            logger.info("%s %s leaves memory", old_category, old_version)
        self._metrics.resident.set(len(self._resident))
        started = time.perf_counter()
        try:
            predictor = self._load(self._store.path(category, version))
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            logger.exception("%s %s can't be loaded", category, version)
            raise StoreCorrupt(f"version '{version}' of category '{category}' can't be loaded") from error
        self._resident[key] = predictor
        self._metrics.loads.inc()
        self._metrics.resident.set(len(self._resident))
        logger.info("%s %s loaded in %.2f s", category, version, time.perf_counter() - started)
        return predictor

    def __len__(self) -> int:
        return len(self._resident)
