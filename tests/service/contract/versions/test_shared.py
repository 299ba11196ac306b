"""Versions in a real S3 server, used from two machines: folders that share nothing else."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract.durable_files import write_json
from service.contract.errors import (
    PreconditionFailed,
    StoreCorrupt,
    StoreUnavailable,
    UnknownVersion,
    VersionExists,
    VersionInUse,
)
from service.contract.objects import Objects, Replaced
from service.contract.settings import CommonSettings
from service.contract.versions.additions import Additions
from service.contract.versions.changes import delete_version, move_alias
from service.contract.versions.shared import SharedVersions, open_versions
from tests.support.clocks import set_clock
from tests.support.s3 import s3_server

pytestmark = pytest.mark.integration
V1, V2 = "20260101T000000-aaaaaa", "20260202T000000-bbbbbb"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as environment:
        yield environment


@pytest.fixture
def url(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"{server['PPL_STORE_URL']}/{hashlib.sha256(str(tmp_path).encode()).hexdigest()}"


@pytest.fixture
def machines(url: str, tmp_path: Path) -> tuple[SharedVersions, SharedVersions]:
    one, other = (SharedVersions(tmp_path / name, Objects(url)) for name in ("one", "other"))
    return one, other


def publish(store: SharedVersions, version: str, weights: bytes = b"w" * 6_000_000) -> None:
    """Publish a version whose weights are sent in several parts."""
    with store.staging("dog", version) as folder:
        write_json(folder / "version.json", {"version": version, "job_id": version[-6:]})
        (folder / "weights.safetensors").write_bytes(weights)
        (folder / "additions").mkdir()
        write_json(folder / "additions" / "keypoint-names.json", {"names": ["nose"]})
        store.publish(folder, "dog", version)


def test_version_is_there_for_other_machines_at_once(machines: tuple[SharedVersions, SharedVersions]) -> None:
    one, other = machines
    publish(one, V1)
    one.activate("dog", V1)

    assert other.resolve("dog") == V1
    assert other.info("dog", V1)["job_id"] == "aaaaaa"
    assert not (other.path("dog", V1) / "weights.safetensors").exists(), "files come at their first use"
    assert other.weights_path("dog", V1).read_bytes() == b"w" * 6_000_000
    assert sorted(path.name for path in other.complete("dog", V1).iterdir() if path.suffix == ".safetensors")
    assert Additions(other).names("dog", V1) == ("nose",)
    assert other.find_by_job("dog", "aaaaaa") == V1
    with pytest.raises(VersionExists):
        publish(other, V1)


def test_changes_reach_other_machines_with_the_next_poll(machines: tuple[SharedVersions, SharedVersions]) -> None:
    one, other = machines
    for version in (V1, V2):
        publish(one, version)
    one.activate("dog", V2)
    other.poll()
    before = other.identity("dog", V1)

    move_alias(other, "dog", "active", V1)
    move_alias(other, "dog", "old", V2)
    Additions(other).put_names("dog", V1, ["tail"])
    one.poll()
    assert one.aliases("dog") == {"active": V1, "old": V2}
    assert Additions(one).names("dog", V1) == ("tail",)
    with pytest.raises(VersionInUse):
        delete_version(one, "dog", V1)
    move_alias(one, "dog", "active", V2)
    delete_version(one, "dog", V1)
    other.poll()
    assert other.versions("dog") == [V2]
    with pytest.raises(UnknownVersion):
        other.identity("dog", V1)
    publish(one, V1, b"other weights")
    other.poll()
    assert other.identity("dog", V1) != before
    assert other.weights_path("dog", V1).read_bytes() == b"other weights"


def test_machines_that_move_one_alias_at_once_never_overwrite_each_other(
    machines: tuple[SharedVersions, SharedVersions],
) -> None:
    """Each move that succeeds flips the alias, so its place gives the parity of all of them."""
    for version in (V1, V2):
        publish(machines[0], version, b"w")
    move_alias(machines[0], "dog", "champion", V1)
    won, lost = [], []

    def flip(store: SharedVersions) -> None:
        for _ in range(15):
            now = store.alias("dog", "champion")

            def check(target: str | None, expected: str = now) -> None:
                if target != expected:
                    raise PreconditionFailed

            try:
                move_alias(store, "dog", "champion", V2 if now == V1 else V1, check)
                won.append(now)
            except PreconditionFailed:
                lost.append(now)

    movers = [threading.Thread(target=flip, args=(store,)) for store in machines]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    machines[0].poll()
    assert len(won) + len(lost) == 30
    assert lost, "they never met"
    assert machines[0].alias("dog", "champion") == (V1, V2)[len(won) % 2]


def test_object_is_replaced_only_as_it_was_read(url: str) -> None:
    objects = Objects(url)
    first = objects.replace("a", b"1", None)
    with pytest.raises(Replaced):
        objects.replace("a", b"2", None)
    objects.replace("a", b"2", first)
    with pytest.raises(Replaced):
        objects.replace("a", b"3", first)
    assert objects.read("a")[0] == b"2"


def test_damaged_object_is_not_used(machines: tuple[SharedVersions, SharedVersions], url: str) -> None:
    one, other = machines
    publish(one, V1)
    objects = Objects(url)
    name = next(name for name, _, _ in objects.scan("versions") if name.endswith("weights.safetensors"))
    objects.upload(name, b"v" * 6_000_000)
    with pytest.raises(StoreCorrupt, match=r"weights\.safetensors in the object store does not match its SHA-256"):
        other.weights_path("dog", V1)
    assert not (other.path("dog", V1) / "weights.safetensors").exists()


def test_what_is_here_is_used_while_the_store_is_away(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedVersions(tmp_path / "one", Objects(url))
    publish(store, V1)
    store.activate("dog", V1)
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("service.contract.objects._RETRIES", {"max_retries": 0})
    away = SharedVersions(tmp_path / "one", Objects(url))
    assert away.resolve("dog") == V1
    assert away.weights_path("dog", V1).stat().st_size == 6_000_000
    with pytest.raises(StoreUnavailable) as raised:
        move_alias(away, "dog", "old", V1)
    assert "127.0.0.1" not in str(raised.value)


def test_objects_that_no_version_has_are_deleted_after_a_day(
    machines: tuple[SharedVersions, SharedVersions], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, objects = machines[0], Objects(url)
    publish(store, V1)
    Additions(store).put_names("dog", V1, ["tail"])  # leaves the object of the names before
    objects.upload("versions/dog/lost-0123456789abcdef/weights.safetensors", b"w")
    before = {name for name, _, _ in objects.scan("versions")}
    assert store.sweep_objects() == 0
    with monkeypatch.context() as here:
        set_clock(here, 25 * 3600)
        assert store.sweep_objects() == 0, "the store's clock decides"
    now = objects.time()
    monkeypatch.setattr(Objects, "time", lambda objects: now + 25 * 3600)
    assert store.sweep_objects() == 2
    gone = before - {name for name, _, _ in objects.scan("versions")}
    assert {name.split("/")[2].partition("-")[0] for name in gone} == {"lost", V1.partition("-")[0]}


def test_unknown_stores_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="store_url"):
        CommonSettings(store_url="ftp://host/folder")
    with pytest.raises(ValueError, match="PPL_STORE_URL can't be opened"):
        open_versions(CommonSettings(store_url="az://x", data_root=tmp_path))
