"""`ppl backup` of a running platform, and `ppl restore` into an empty one."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer

from service.access.keys import KeyStore, Scope
from service.cli.backup import backup, restore
from service.client import Client
from service.contract.datasets.dataset import DatasetRecord
from service.contract.datasets.store import RECORD, DatasetFiles
from service.contract.objects import Objects
from service.contract.settings import CommonSettings
from service.contract.versions.changes import move_alias
from service.contract.versions.shared import SharedVersions
from service.contract.versions.store import VersionStore
from service.estimates.schemas import EstimateStatus
from service.estimates.store import EstimateStore
from service.runtime.secrets import webhook_secret
from service.runtime.settings import Settings
from tests.service.estimates.test_shared_estimates import submit
from tests.support.live_gateway import live_gateway, live_gateway_and_inspector

V1, V2 = "20260101T000000-abc123", "20260202T000000-abc123"


def test_platform_that_runs_is_backed_up_and_restored_into_an_empty_one(
    make_settings: Callable[..., Settings],
    publish: Callable[..., str],
    make_picture: Callable[..., bytes],
    data_root: Path,
    tmp_path: Path,
) -> None:
    settings, pictures = make_settings(), io.BytesIO()
    with zipfile.ZipFile(pictures, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", make_picture(40 + number))
    (tmp_path / "pictures.zip").write_bytes(pictures.getvalue())
    publish(version=V1)
    publish(version=V2)
    key, text = KeyStore(data_root).create("lab", [Scope.READ])
    store, done = VersionStore(data_root), threading.Event()

    def keep_changing() -> None:
        """Publish versions, and move an alias to each, as workers and users do."""
        number = 0
        while not done.wait(0.01):
            publish(category="cat", version=f"20260303T{number:06}-abc123")
            move_alias(store, "cat", "newest", f"20260303T{number:06}-abc123")
            number += 1

    changing = threading.Thread(target=keep_changing)
    with live_gateway_and_inspector(settings) as url, Client(url) as before:
        move_alias(store, "dog", "champion", V1)
        before.name_keypoints("dog", ["a", "b", "c", "d", "e"], V1)
        dataset = before.datasets.wait(before.datasets.create(tmp_path / "pictures.zip").id, timeout_s=60)
        estimate = before.estimate("dog", [make_picture()])
        changing.start()
        try:
            for _ in range(3):
                backup(tmp_path / "ppl.tar", data_root)
        finally:
            done.set()
            changing.join()
        shown = before.prior("dog", "champion"), before.webhook_secret()
        backup(tmp_path / "ppl.tar", data_root)

        empty = tmp_path / "empty"
        empty.mkdir()
        with live_gateway(settings.model_copy(update={"data_root": empty})) as other, Client(other) as after:
            assert [entry.category for entry in after.priors()] == []
            restore(tmp_path / "ppl.tar", empty)
            assert (after.prior("dog", "champion"), after.webhook_secret()) == shown
            assert list(after.aliases.list("dog")) == list(before.aliases.list("dog"))
            assert list(after.versions.list("cat")) == list(before.versions.list("cat"))
            assert after.datasets.get(dataset.id) == dataset
            assert after.datasets.picture(dataset.id, 2) == before.datasets.picture(dataset.id, 2)
            assert after.estimate("dog", [make_picture()]).images == estimate.images
            exports = [
                client.versions.export("dog", V1, tmp_path / f"{index}.zip").read_bytes()
                for index, client in enumerate((before, after))
            ]
            assert exports[0] == exports[1]
        assert KeyStore(empty).find(text) == key
        assert not list(empty.glob(".backup-*"))
        assert not list(data_root.glob(".backup-*"))
    restore(tmp_path / "ppl.tar", empty)  # once more: everything is there


def test_versions_move_into_an_object_store_by_a_backup(
    publish: Callable[..., str], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(version=V1)
    move_alias(VersionStore(data_root), "dog", "champion", V1)
    key, text = KeyStore(data_root).create("lab", [Scope.READ])
    backup(tmp_path / "1.tar", data_root)
    url = f"file://{tmp_path}/objects"
    monkeypatch.setenv("PPL_STORE_URL", url)
    restore(tmp_path / "1.tar", tmp_path / "a")
    backup(tmp_path / "2.tar", tmp_path / "b")  # on another machine
    elsewhere = SharedVersions(tmp_path / "c", Objects(url))
    elsewhere.poll()
    assert elsewhere.resolve("dog", "champion") == V1
    keys = KeyStore.open(CommonSettings(data_root=tmp_path / "c"))
    keys.follow()
    assert keys.find(text) == key
    with tarfile.open(tmp_path / "1.tar") as one, tarfile.open(tmp_path / "2.tar") as two:
        assert set(one.getnames()) <= set(two.getnames())


def stage_dataset(data_root: Path) -> tuple[Path, DatasetRecord]:
    """Write the files of a dataset as an upload stages them; return their folder and the record."""
    record = DatasetRecord(
        id="0" * 24, digest="sha256:0", mode="stills", size_bytes=8, pictures=1, videos=0, created_at=datetime.now(UTC)
    )
    staged = data_root / "staged"
    staged.mkdir(parents=True)
    (staged / RECORD).write_text(record.model_dump_json())
    (staged / "archive").write_bytes(b"pictures")
    return staged, record


def test_dataset_of_an_object_store_is_backed_up_with_its_archive_on_a_machine_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged, record = stage_dataset(tmp_path / "uploading")
    with monkeypatch.context() as with_store:
        with_store.setenv("PPL_STORE_URL", f"file://{tmp_path}/objects")
        DatasetFiles.open(CommonSettings(data_root=tmp_path / "uploading")).add(staged, record, 8)
        polled = DatasetFiles.open(CommonSettings(data_root=tmp_path / "other"))
        polled.poll()
        assert not polled.archive(record.id).exists()
        backup(tmp_path / "ppl.tar", tmp_path / "other")
    restore(tmp_path / "ppl.tar", tmp_path / "alone")
    restored = DatasetFiles(tmp_path / "alone")
    assert restored.archive(record.id).read_bytes() == b"pictures"
    assert restored.get(record.id) == polled.get(record.id)


def test_dataset_moves_into_an_object_store_by_a_backup_on_its_own_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is still there from before the store, which does not mean that the store has it."""
    staged, record = stage_dataset(tmp_path / "here")
    assert DatasetFiles(tmp_path / "here").add(staged, record, 8)
    backup(tmp_path / "ppl.tar", tmp_path / "here")
    monkeypatch.setenv("PPL_STORE_URL", f"file://{tmp_path}/objects")
    restore(tmp_path / "ppl.tar", tmp_path / "here")
    elsewhere = DatasetFiles.open(CommonSettings(data_root=tmp_path / "elsewhere"))
    elsewhere.poll()
    elsewhere.complete(record.id)
    assert elsewhere.archive(record.id).read_bytes() == b"pictures"
    assert DatasetFiles.open(CommonSettings(data_root=tmp_path / "here")).record(record.id).digest == record.digest


def test_estimate_and_webhook_secret_move_into_an_object_store_and_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = EstimateStore(tmp_path / "before")
    record = submit(before)
    before.path(record.shown.id, "result").write_bytes(b"poses")
    before.end(record, EstimateStatus.SUCCEEDED)
    unfinished = submit(before)
    secret = webhook_secret(CommonSettings(data_root=tmp_path / "before"))
    backup(tmp_path / "1.tar", tmp_path / "before")
    with monkeypatch.context() as with_store:
        with_store.setenv("PPL_STORE_URL", f"file://{tmp_path}/objects")
        restore(tmp_path / "1.tar", tmp_path / "one")
        assert webhook_secret(CommonSettings(data_root=tmp_path / "elsewhere")) == secret
        backup(tmp_path / "2.tar", tmp_path / "other")
    restore(tmp_path / "2.tar", tmp_path / "after")
    after = EstimateStore(tmp_path / "after")
    assert after.path(record.shown.id, "result").read_bytes() == b"poses"
    assert [item.id for item in after.page(10).items] == [record.shown.id]
    assert not after.path(unfinished.shown.id).exists()
    assert webhook_secret(CommonSettings(data_root=tmp_path / "after")) == secret


@pytest.mark.parametrize("command", [backup, restore])
@pytest.mark.parametrize(
    ("url", "reason"), [("ftp://x", "PPL_STORE_URL: "), ("az://x", "PPL_STORE_URL can't be opened")]
)
def test_invalid_store_url_is_a_bad_setting(
    command: Callable[..., None],
    url: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PPL_STORE_URL", url)
    with pytest.raises(typer.Exit) as exit_:
        command(tmp_path / "ppl.tar", tmp_path / "data", as_json=True)
    problem = json.loads(capsys.readouterr().err)
    assert exit_.value.exit_code == 2
    assert problem["code"] == "bad_setting"
    assert reason in problem["detail"]


def test_failed_backup_leaves_no_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / "folder").mkdir(parents=True)
    with pytest.raises(typer.Exit):
        backup(tmp_path / "out" / "folder", tmp_path / "data")
    assert "backup_failed" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["folder"]


@pytest.mark.parametrize("how", ["damaged", "cut off", "climbing", "not a tar"])
def test_file_that_is_no_sound_backup_restores_nothing(
    how: str, publish: Callable[..., str], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(version=V1)
    file, empty = tmp_path / "ppl.tar", tmp_path / "empty"
    backup(file, data_root)
    data = file.read_bytes()
    if how == "damaged":
        data = data.replace(b'"num_keypoints"', b'"num_keypoinXs"', 1)
    elif how == "cut off":
        data = data[: len(data) // 2]
    elif how == "not a tar":
        data = b"PK" * 5000
    file.write_bytes(data)
    if how == "climbing":
        with tarfile.open(file, "w") as archive:
            member = tarfile.TarInfo("categories/../../escaped")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(typer.Exit):
        restore(file, empty)
    assert [path for path in empty.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "escaped").exists()
    expected = {
        "damaged": "config.json differs from the manifest in size or SHA-256; the backup is damaged, use another",
        "climbing": "the tar has a member 'categories/../../escaped'; a tar of `ppl backup` has only",
    }
    reported = capsys.readouterr().err.replace("\n", " ")
    assert expected.get(how, "the file is not a complete tar of `ppl backup` (") in reported
    assert "(restore_failed)" in reported


def test_other_version_of_the_same_name_is_not_replaced(
    publish: Callable[..., str], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(version=V1)
    backup(tmp_path / "ppl.tar", data_root)
    other = VersionStore(tmp_path / "other")
    with other.staging("dog", V1) as folder:
        (folder / "version.json").write_text('{"job_id": "other"}')
        other.publish(folder, "dog", V1)
    with pytest.raises(typer.Exit):
        restore(tmp_path / "ppl.tar", tmp_path / "other")
    assert other.info("dog", V1) == {"job_id": "other"}
    assert f"category 'dog' has another version '{V1}'" in capsys.readouterr().err.replace("\n", " ")
