"""The categories that come with the platform are there at once, and never in the way of what a user trained."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

import service.gateway.serve
from service.contract.versions.store import VersionStore
from service.versions.samples import install_samples

SHIPPED = sorted((Path(str(files("service"))) / "samples").glob("*/version.json"))
SAMPLE = "20200101T000000-5a3b1e"


@pytest.fixture
def samples(publish: Callable[..., str], data_root: Path, tmp_path: Path) -> Path:
    """A folder with one sample version, as the package holds it; the data root is empty again."""
    publish("dog", SAMPLE)
    folder = tmp_path / "samples"
    shutil.copytree(data_root / "categories" / "dog" / "versions" / SAMPLE, folder / "dog")
    shutil.rmtree(data_root / "categories")
    (folder / "dog.zip").write_bytes(b"pictures lie beside it")
    return folder


@pytest.fixture
def store(data_root: Path) -> VersionStore:
    return VersionStore(data_root)


def test_empty_data_root_gets_the_sample(store: VersionStore, samples: Path) -> None:
    assert install_samples(store, samples) == ["dog"]
    assert store.active("dog") == SAMPLE
    placed = store.path("dog", SAMPLE)
    assert {path.name: path.read_bytes() for path in placed.iterdir()} == {
        path.name: path.read_bytes() for path in (samples / "dog").iterdir()
    }
    assert install_samples(store, samples) == []


def test_category_that_was_trained_is_left_alone(
    store: VersionStore, samples: Path, publish: Callable[..., str]
) -> None:
    own = publish("dog")
    assert install_samples(store, samples) == []
    assert (store.versions("dog"), store.active("dog")) == ([own], own)


def test_trained_version_takes_the_place_of_the_sample(
    store: VersionStore, samples: Path, publish: Callable[..., str]
) -> None:
    install_samples(store, samples)
    own = publish("dog")
    assert install_samples(store, samples) == []
    assert (store.versions("dog"), store.active("dog")) == ([own, SAMPLE], own)


def test_installation_that_was_cut_off_is_made_good(store: VersionStore, samples: Path, data_root: Path) -> None:
    install_samples(store, samples)
    (data_root / "categories" / "dog" / "active.json").unlink()
    assert install_samples(store, samples) == ["dog"]
    assert store.active("dog") == SAMPLE


def test_fault_is_logged_and_hinders_nothing(samples: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a file").write_text("where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert install_samples(VersionStore(tmp_path / "a file"), samples) == []
    assert "not installed" in caplog.text


@pytest.mark.parametrize("wanted", ["1", "0"])
def test_gateway_installs_it_unless_switched_off(
    wanted: str, samples: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPL_SAMPLE_CATEGORIES", wanted)
    monkeypatch.setenv("PPL_DATA_ROOT", str(data_root))
    monkeypatch.setattr("sys.argv", ["serve"])
    monkeypatch.setattr("service.gateway.serve.install_samples", lambda store: install_samples(store, samples))
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    monkeypatch.setattr("logging.basicConfig", lambda **options: None)
    service.gateway.serve.main()
    assert VersionStore(data_root).categories() == (["dog"] if wanted == "1" else [])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_sample_is_whole(path: Path, store: VersionStore) -> None:
    info = json.loads(path.read_text())
    assert info["category"] == path.parent.name
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.parent.iterdir() if file != path}
    assert found == info["files"]
    assert set(found) == {f"{n}.json" for n in ("config", "history", "memory", "presence", "prior")} | {
        "weights.safetensors"
    }
    assert sum(file.stat().st_size for file in path.parent.iterdir()) <= 20 * 2**20
    assert path.parent.name in install_samples(store)
