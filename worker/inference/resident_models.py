"""Models kept in memory, by version."""

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


class ResidentModels:
    """An LRU cache of loaded models. Not thread-safe: a worker runs one batch at a time.

    Args:
        limit: maximum number of models in memory.
        load: reads the model from a version's folder.
    """

    def __init__(
        self, store: VersionStore, limit: int, load: Callable[[Path], Predictor], metrics: InferenceMetrics
    ) -> None:
        self._store = store
        self._limit = limit
        self._load = load
        self._metrics = metrics
        self._models: OrderedDict[tuple[str, str, tuple[int, int]], Predictor] = OrderedDict()

    def get(self, category: str, version: str) -> Predictor:
        """Return the model of a version, loading it if needed.

        Raises:
            UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName.
            StoreCorrupt: the version's files are missing or damaged.
        """
        key = (category, version, self._store.identity(category, version))
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        while len(self._models) >= self._limit:  # evict before loading, to stay within memory
            (old_category, old_version, _), _ = self._models.popitem(last=False)
            self._metrics.evictions.inc()
            logger.info("model evicted: category=%s version=%s", old_category, old_version)
        self._metrics.resident.set(len(self._models))
        started = time.perf_counter()
        try:
            predictor = self._load(self._store.path(category, version))
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            logger.exception("model can't be loaded: category=%s version=%s", category, version)
            raise StoreCorrupt(
                f"version '{version}' of category '{category}' can't be loaded; the worker's log has the reason"
            ) from error
        self._models[key] = predictor
        self._metrics.loads.inc()
        self._metrics.resident.set(len(self._models))
        seconds = time.perf_counter() - started
        logger.info("model loaded: category=%s version=%s seconds=%.2f", category, version, seconds)
        return predictor

    def __len__(self) -> int:
        return len(self._models)
