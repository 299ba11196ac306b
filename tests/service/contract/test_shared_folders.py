"""Folders in an object store: what one machine sends is what another fetches, and no change is lost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.contract.datasets.dataset import DatasetRecord
from service.contract.datasets.store import RECORD, DatasetFiles
from service.contract.errors import StoreCorrupt, UnknownDataset
from service.contract.jobs.files import JobFiles
from service.contract.objects import Objects, Replaced
from service.contract.shared_folders import SharedFolders


@pytest.fixture
def folders(tmp_path: Path) -> SharedFolders:
    return SharedFolders(Objects(f"file://{tmp_path}/objects"), "jobs")


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def read(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("[!.]*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_changes_go_from_one_machine_to_another_and_back(folders: SharedFolders, tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", archive="pictures", checkpoint__state="1"), tmp_path / "other"
    (one / ".draft").write_text("not sent")
    folders.send("job", one)
    assert folders.fetch("job", other)
    assert read(other) == {"archive": "pictures", "checkpoint/state": "1"}
    assert folders.read("job", "checkpoint/state") == b"1"

    (other / "archive").unlink()
    write(other, checkpoint__state="2", preview="picture")
    folders.send("job", other)
    folders.fetch("job", one)
    assert read(one) == {"checkpoint/state": "2", "preview": "picture"}
    stored = {name for name, _, _ in folders._objects.scan("jobs")}
    assert len(stored) == 3, "the two files and their list; what nothing names is deleted"


def test_equal_files_are_sent_and_fetched_once(
    folders: SharedFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = write(tmp_path / "one", a="same", b="same", c="other"), tmp_path / "other"
    folders.send("job", one)
    assert len(list(folders._objects.scan("jobs"))) == 3, "two contents and the list"
    fetched, download = [], Objects.download

    def count(objects: Objects, name: str, path: Path, sha256: str) -> None:
        fetched.append(name)
        download(objects, name, path, sha256)

    monkeypatch.setattr(Objects, "download", count)
    folders.fetch("job", other)
    assert read(other) == {"a": "same", "b": "same", "c": "other"}
    assert len(fetched) == 2
    (other / "a").write_text("changed here")
    assert read(other)["b"] == "same"


def test_machine_that_knows_no_newest_state_replaces_nothing(folders: SharedFolders, tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", state="1"), tmp_path / "other"
    folders.send("job", one)
    folders.fetch("job", other)
    folders.send("job", write(other, state="2"))
    with pytest.raises(Replaced):
        folders.send("job", write(one, state="stale"))
    assert folders.read("job", "state") == b"2"


def test_files_that_were_not_fetched_stay_in_the_store(folders: SharedFolders, tmp_path: Path) -> None:
    folders.send("set", write(tmp_path / "one", archive="large", findings="1"))
    other = tmp_path / "other"
    folders.fetch("set", other, ["findings"])
    assert read(other) == {"findings": "1"}
    folders.send("set", write(other, findings="2"))
    third = tmp_path / "third"
    folders.fetch("set", third)
    assert read(third) == {"archive": "large", "findings": "2"}
    folders.fetch("set", other)
    assert read(other) == read(third)


def test_poll_follows_changes_and_removals_and_leaves_local_folders(folders: SharedFolders, tmp_path: Path) -> None:
    folders.send("a", write(tmp_path / "one", archive="large", findings="1"))
    copies = tmp_path / "copies"
    write(copies / "local", findings="never sent")
    folders.poll(copies, ["local"], ["findings"])
    assert read(copies / "a") == {"findings": "1"}
    folders.remove("a")
    folders.poll(copies, ["local", "a"], ["findings"])
    assert not (copies / "a").exists()
    assert read(copies / "local") == {"findings": "never sent"}
    assert not folders.fetch("a", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_damaged_and_climbing_names_are_refused(folders: SharedFolders, tmp_path: Path) -> None:
    folders.send("job", write(tmp_path / "one", state="1"))
    digest = next(name for name, _, _ in folders._objects.scan("jobs") if not name.endswith("files.json"))
    folders._objects.upload(digest, b"other")
    with pytest.raises(StoreCorrupt, match="does not match its SHA-256; publish or upload it again"):
        folders.fetch("job", tmp_path / "other")
    folders._objects.upload("jobs/bad/files.json", b'{"files": {"../escaped": "0"}}')
    with pytest.raises(StoreCorrupt, match="not a valid file name"):
        folders.fetch("bad", tmp_path / "bad")


def test_job_is_handed_over_with_and_without_files(folders: SharedFolders, tmp_path: Path) -> None:
    gateway, worker = JobFiles(tmp_path / "gateway", folders), JobFiles(tmp_path / "worker", folders)
    uploaded, on_folder = "0" * 22, "1" * 22
    write(gateway.folder(uploaded), archive="pictures")
    for job_id in (uploaded, on_folder):
        gateway.hand_over(job_id)
        assert not gateway.folder(job_id).exists()
        worker.fetch(job_id)
    assert worker.archive(uploaded).read_text() == "pictures"
    assert read(worker.folder(on_folder)) == {}
    assert set(gateway.seconds_since_sent()) == {uploaded, on_folder}
    worker.remove(uploaded)
    assert set(gateway.seconds_since_sent()) == {on_folder}
    with pytest.raises(FileNotFoundError):
        gateway.read(uploaded, "archive")


def test_unknown_dataset_leaves_no_folder(tmp_path: Path) -> None:
    datasets = DatasetFiles(tmp_path, SharedFolders(Objects(f"file://{tmp_path}/objects"), "datasets"))
    with pytest.raises(UnknownDataset):
        datasets.record("0" * 24)
    assert not datasets.root.exists()


def test_dataset_that_a_poll_fetches_while_it_is_stored_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedFolders(Objects(f"file://{tmp_path}/objects"), "datasets")
    datasets, send = DatasetFiles(tmp_path, shared), shared.send

    def send_and_poll(name: str, folder: Path) -> None:
        send(name, folder)
        datasets.poll()  # by the gateway's loop, before the upload is moved to its place

    monkeypatch.setattr(shared, "send", send_and_poll)
    facts = {"digest": "sha256:0", "mode": "stills", "size_bytes": 8, "pictures": 1, "videos": 0}
    record = DatasetRecord(id="0" * 24, created_at=datetime(2026, 1, 1, tzinfo=UTC), **facts)
    staged = write(tmp_path / "staged", **{RECORD: record.model_dump_json(), "archive": "pictures"})
    assert datasets.add(staged, record, 1000)
    assert datasets.get(record.id).digest == "sha256:0"
    datasets.complete(record.id)
    assert datasets.archive(record.id).read_text() == "pictures"
