from __future__ import annotations

import errno
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.contract.durable_files import write_json
from service.contract.errors import (
    BadCategoryName,
    BadFolder,
    BadVersionName,
    StoreCorrupt,
    UnknownCategory,
    UnknownJob,
    UnknownVersion,
    VersionExists,
)
from service.contract.jobs.files import JobFiles, training_folder
from service.contract.versions.additions import Additions
from service.contract.versions.store import VersionStore, check_category, new_version_id

JOB = "0192a3b4c5d6deadbeef01"


def publish(store: VersionStore, version: str, category: str = "dog", job_id: str = JOB) -> None:
    with store.staging(category, version) as folder:
        write_json(folder / "version.json", {"format": 1, "version": version, "job_id": job_id})
        write_json(folder / "prior.json", {"num_keypoints": 4})
        store.publish(folder, category, version)


@pytest.fixture
def store(data_root: Path) -> VersionStore:
    return VersionStore(data_root)


@pytest.mark.parametrize("name", ["dog", "0", "a-b_c", "x" * 64])
def test_plain_names_are_accepted(name: str) -> None:
    assert check_category(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "Dog", "dög", "dog\n", "-a", "_a", "a b", "a\0", "x" * 65]
)
def test_paths_and_odd_names_are_refused_as_categories(store: VersionStore, name: str) -> None:
    for use in (lambda: store.path(name, "v1"), lambda: store.versions(name), lambda: store.resolve(name)):
        with pytest.raises(BadCategoryName):
            use()


@pytest.mark.parametrize("name", ["..", "../../x", "a/b", ".staging-v1", "", "v1\n"])
def test_paths_are_refused_as_versions(store: VersionStore, name: str) -> None:
    publish(store, "v1")
    with pytest.raises(BadVersionName):
        store.resolve("dog", name)


def test_empty_root_has_no_categories(store: VersionStore) -> None:
    assert store.categories() == []
    with pytest.raises(UnknownCategory):
        store.resolve("dog")


def test_published_and_activated_version_is_found(store: VersionStore) -> None:
    publish(store, "v1")
    publish(store, "v2")
    assert store.categories() == ["dog"]
    assert store.versions("dog") == ["v2", "v1"]
    with pytest.raises(UnknownVersion, match="no active version"):
        store.resolve("dog")
    store.activate("dog", "v1")
    assert store.resolve("dog") == "v1"
    assert store.resolve("dog", "v2") == "v2"
    assert store.prior("dog", "v1") == {"num_keypoints": 4}
    with pytest.raises(UnknownVersion):
        store.resolve("dog", "v3")
    with pytest.raises(UnknownVersion):
        store.activate("dog", "v3")


def test_version_never_changes_once_published(store: VersionStore) -> None:
    publish(store, "v1", job_id=JOB)
    with pytest.raises(VersionExists):
        publish(store, "v1", job_id="other")
    assert store.info("dog", "v1")["job_id"] == JOB


def test_failed_staging_leaves_nothing_behind(store: VersionStore, data_root: Path) -> None:
    def fail() -> None:
        with store.staging("dog", "v1") as folder:
            (folder / "weights.safetensors").write_bytes(b"half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert list((data_root / "categories" / "dog" / "versions").iterdir()) == []
    assert store.categories() == []


def test_two_that_stage_the_same_version_do_not_touch_each_others_files(store: VersionStore) -> None:
    with store.staging("dog", "v1") as first, store.staging("dog", "v1") as second:
        (first / "version.json").write_text('{"by": "first"}')
        (second / "version.json").write_text('{"by": "second"}')
        store.publish(first, "dog", "v1")
        with pytest.raises(VersionExists):
            store.publish(second, "dog", "v1")
    assert store.info("dog", "v1") == {"by": "first"}
    assert store.list_staged() == []


def test_leftover_of_a_killed_process_is_no_version_and_is_replaced(store: VersionStore, data_root: Path) -> None:
    publish(store, "v0")
    left = data_root / "categories" / "dog" / "versions" / ".staging-v1"
    left.mkdir()
    (left / "junk").write_text("x")
    assert store.versions("dog") == ["v0"]
    publish(store, "v1")
    assert not (store.path("dog", "v1") / "junk").exists()


def test_what_users_added_is_published_with_the_version(store: VersionStore, data_root: Path, monkeypatch) -> None:
    def stage(folder: Path, names: list[str]) -> None:
        folder.mkdir()
        (folder / "version.json").write_text("{}")
        if names:
            (folder / "additions").mkdir()
            (folder / "additions" / "keypoint-names.json").write_text(json.dumps({"names": names}))

    class Killed(BaseException):
        """Between two steps."""

    version, rename = "20260101T000000-abc123", os.rename

    def kill_at(folder: str, *, after: bool, how: BaseException) -> None:
        def die(source: Path, target: Path) -> None:
            if target.parent.name != folder or after:
                rename(source, target)
            if target.parent.name == folder:
                raise how

        monkeypatch.setattr("service.contract.versions.store.os.rename", die)

    for number, (folder, after) in enumerate([("additions", False), ("additions", True), ("versions", True)]):
        stage(data_root / f"{number}", ["nose"])
        kill_at(folder, after=after, how=Killed())
        with pytest.raises(Killed):
            store.publish(data_root / f"{number}", "owl", f"v{number}")
        monkeypatch.undo()
    assert store.versions("owl") == ["v2"], "only the one killed after the last step is there"
    assert Additions(store).names("owl", "v2") == ("nose",)

    stage(data_root / "full", ["nose"])
    kill_at("versions", after=False, how=OSError(errno.ENOSPC, "no room"))
    with pytest.raises(OSError, match="no room"):
        store.publish(data_root / "full", "owl", "v3")
    monkeypatch.undo()
    assert not store.additions_path("owl", "v3").exists()

    stage(data_root / "a", ["head"])
    kill_at("versions", after=False, how=Killed())
    with pytest.raises(Killed):
        store.publish(data_root / "a", "dog", version)
    monkeypatch.undo()
    assert store.categories() == ["owl"]
    stage(data_root / "b", [])
    store.publish(data_root / "b", "dog", version)
    assert Additions(store).names("dog", version) is None  # those of the one that never came to be are not its
    stage(data_root / "c", ["tail"])
    store.publish(data_root / "c", "cat", version)
    assert Additions(store).names("cat", version) == ("tail",)
    assert not (store.path("cat", version) / "additions").exists()


def test_all_of_a_version_is_on_the_disk_before_it_is_there(store: VersionStore, data_root: Path, monkeypatch) -> None:
    staged, synced = data_root / "a", []

    def sync(path: Path) -> None:
        synced.append((path, staged.exists()))

    (staged / "additions" / "landmarks").mkdir(parents=True)
    for name in ("version.json", "additions/names.json", "additions/landmarks/one.json"):
        (staged / name).write_text("{}")
    wanted = {staged, *staged.rglob("*")}
    monkeypatch.setattr("service.contract.versions.store.sync", sync)
    store.publish(staged, "dog", "v1")
    assert wanted <= {path for path, before in synced if before}
    assert store.path("dog", "v1").parent in {path for path, before in synced if not before}


def test_version_of_a_job_is_found_again(store: VersionStore) -> None:
    version = new_version_id(JOB, datetime(2026, 11, 23, 6, 45, 1, tzinfo=UTC))
    assert version == "20261123T064501-beef01"
    assert store.find_by_job("dog", JOB) is None
    publish(store, version)
    assert store.find_by_job("dog", JOB) == version
    assert store.find_by_job("dog", "ffffffffffffffffbeef01") is None


def test_missing_or_damaged_file_is_named(store: VersionStore) -> None:
    publish(store, "v1")
    with pytest.raises(StoreCorrupt, match=r"memory\.json"):
        store.memory("dog", "v1")
    (store.path("dog", "v1") / "prior.json").write_text("{")
    with pytest.raises(StoreCorrupt, match=r"prior\.json"):
        store.prior("dog", "v1")


def test_reader_sees_the_old_or_the_new_json_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "active.json"
    write_json(path, {"version": "a" * 2000})
    stop = threading.Event()
    seen = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(json.loads(path.read_text())["version"][0])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(50):
        write_json(path, {"version": "ab"[n % 2] * 2000})
    stop.set()
    reader.join()
    assert seen <= {"a", "b"}
    assert [file.name for file in tmp_path.iterdir()] == ["active.json"]


def test_job_files_are_made_and_removed(data_root: Path) -> None:
    files = JobFiles(data_root)
    assert files.ids() == []
    files.create(JOB)
    files.archive(JOB).write_bytes(b"zip")
    assert files.ids() == [JOB]
    files.remove(JOB)
    files.remove(JOB)
    assert files.ids() == []


@pytest.mark.parametrize("job_id", ["..", "../x", "", "XYZ", "a/b"])
def test_job_ids_that_are_paths_are_unknown(data_root: Path, job_id: str) -> None:
    with pytest.raises(UnknownJob):
        JobFiles(data_root).remove(job_id)


def test_training_folder_below_the_root_is_found(data_root: Path) -> None:
    (data_root / "imports" / "dogs").mkdir(parents=True)
    assert training_folder(data_root, "imports/dogs") == data_root.resolve() / "imports" / "dogs"
    assert training_folder(data_root, str(data_root / "imports")) == data_root.resolve() / "imports"


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../outside", "/etc", "missing", "file", "link", "categories", "jobs/x", "a\0b", "x" * 5000],
)
def test_folder_outside_or_of_the_platform_is_refused(data_root: Path, name: str) -> None:
    (data_root.parent / "outside").mkdir()
    (data_root / "link").symlink_to(data_root.parent / "outside")
    (data_root / "categories").mkdir()
    (data_root / "jobs" / "x").mkdir(parents=True)
    (data_root / "file").write_text("")
    with pytest.raises(BadFolder):
        training_folder(data_root, name)


def test_circle_of_links_is_refused(data_root: Path) -> None:
    (data_root / "a").symlink_to(data_root / "b")
    (data_root / "b").symlink_to(data_root / "a")
    with pytest.raises(BadFolder):
        training_folder(data_root, "a")
