from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.contract.durable_files import write_json
from service.contract.errors import (
    BadAliasName,
    Conflict,
    NameTaken,
    UnknownAlias,
    UnknownCategory,
    UnknownVersion,
    VersionInUse,
)
from service.contract.objects import Objects
from service.contract.versions.changes import MAX_ALIASES, delete_version, move_alias, remove_alias
from service.contract.versions.shared import SharedVersions
from service.contract.versions.store import VersionStore, check_alias

V1, V2, V3 = "20260101T000000-aaaaaa", "20260202T000000-bbbbbb", "20260303T000000-cccccc"


def publish(store: VersionStore, version: str, category: str = "dog") -> None:
    with store.staging(category, version) as folder:
        write_json(folder / "version.json", {"format": 1, "version": version, "job_id": version[-6:]})
        store.publish(folder, category, version)


@pytest.fixture(params=["data root", "object store"])
def store(request: pytest.FixtureRequest, data_root: Path) -> VersionStore:
    in_folder = request.param == "data root"
    store = VersionStore(data_root) if in_folder else SharedVersions(data_root, Objects(f"file://{data_root}/objects"))
    for version in (V1, V2, V3):
        publish(store, version)
    store.activate("dog", V3)
    return store


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "Champion", "1st", "-a", "a\n", "ä", "a" * 65])
def test_odd_names_are_no_aliases(store: VersionStore, name: str) -> None:
    with pytest.raises(BadAliasName):
        check_alias(name)
    with pytest.raises(BadAliasName):
        move_alias(store, "dog", name, V1)


def test_alias_names_a_version_wherever_one_can_be_named(store: VersionStore) -> None:
    assert move_alias(store, "dog", "champion", V1) == (V1, True)
    assert store.resolve("dog", "champion") == V1
    assert store.resolve("dog", "active") == V3 == store.resolve("dog")
    assert move_alias(store, "dog", "champion", "active") == (V3, False)
    assert store.aliases("dog") == {"active": V3, "champion": V3}


def test_moving_the_active_alias_back_rolls_back(store: VersionStore) -> None:
    move_alias(store, "dog", "active", V1)
    assert store.active("dog") == V1
    # where every release looks
    assert json.loads((store.root / "dog" / "active.json").read_text()) == {"version": V1}


def test_data_root_of_the_first_release_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "categories" / "cat" / "versions" / V1
    folder.mkdir(parents=True)
    (folder / "version.json").write_text(json.dumps({"format": 1}))
    (folder.parents[1] / "active.json").write_text(json.dumps({"version": V1}, indent=1))
    store = VersionStore(tmp_path)
    assert store.aliases("cat") == {"active": V1}
    assert store.resolve("cat", "active") == V1


def test_alias_and_version_can_not_share_a_name(store: VersionStore) -> None:
    publish(store, "v1")
    with pytest.raises(NameTaken):
        move_alias(store, "dog", "v1", V1)
    move_alias(store, "dog", "v2", V1)
    for name in ("v2", "active"):
        with pytest.raises(NameTaken):
            publish(store, name)
        assert name not in store.versions("dog")


def test_unknown_categories_versions_and_aliases_raise_different_errors(store: VersionStore) -> None:
    with pytest.raises(UnknownAlias):
        store.alias("dog", "champion")
    with pytest.raises(UnknownAlias):
        remove_alias(store, "dog", "champion")
    with pytest.raises(UnknownVersion):
        store.resolve("dog", "champion")
    with pytest.raises(UnknownVersion):
        move_alias(store, "dog", "champion", "20990101T000000-ffffff")
    with pytest.raises(UnknownCategory):
        move_alias(store, "cat", "champion", V1)
    assert not (store.path("cat", V1).parents[1]).exists()


def test_removed_alias_is_gone_and_its_version_stays(store: VersionStore) -> None:
    move_alias(store, "dog", "champion", V1)
    remove_alias(store, "dog", "champion")
    assert store.aliases("dog") == {"active": V3}
    assert V1 in store.versions("dog")
    with pytest.raises(Conflict):
        remove_alias(store, "dog", "active")
    assert store.active("dog") == V3


def test_category_has_only_so_many_aliases(store: VersionStore) -> None:
    for number in range(MAX_ALIASES - 1):
        move_alias(store, "dog", f"a{number}", V1)
    with pytest.raises(Conflict, match="100 aliases"):
        move_alias(store, "dog", "one-more", V1)
    move_alias(store, "dog", "a0", V2)


def test_version_with_an_alias_is_not_deleted(store: VersionStore) -> None:
    move_alias(store, "dog", "champion", V1)
    for version in (V1, V3):
        with pytest.raises(VersionInUse):
            delete_version(store, "dog", version)
    delete_version(store, "dog", V2)
    assert store.versions("dog") == [V3, V1]
    for name in (V2, "champion"):
        with pytest.raises(UnknownVersion):
            delete_version(store, "dog", name)
    assert store.list_staged("dog") == []


def test_identity_differs_after_a_version_was_deleted_and_created_again(store: VersionStore) -> None:
    before = store.identity("dog", V1)
    delete_version(store, "dog", V1)
    with pytest.raises(UnknownVersion):
        store.identity("dog", V1)
    publish(store, V1)
    assert store.identity("dog", V1) != before


MOVER = """
import sys
from service.contract.versions.changes import move_alias
from service.contract.errors import PreconditionFailed
from service.contract.objects import Objects
from service.contract.versions.shared import SharedVersions
from service.contract.settings import CommonSettings
from service.contract.versions.shared import open_versions
from service.http.headers import etag, precondition
store, (one, other) = open_versions(CommonSettings()), sys.argv[1:3]
won = 0
for _ in range(60):
    now = store.alias("dog", "champion")
    check = precondition(etag(now), "the alias")
    try:
        move_alias(store, "dog", "champion", other if now == one else one, lambda now: check(etag(now)))
        won += 1
    except PreconditionFailed:
        pass
print(won)
"""


def test_processes_that_move_one_alias_never_overwrite_each_other(
    store: VersionStore, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each successful move flips the alias, so its place gives the parity of all of them."""
    move_alias(store, "dog", "champion", V1)
    command = [sys.executable, "-c", MOVER, V1, V2]
    roots = [data_root, data_root]
    if isinstance(store, SharedVersions):  # as two machines
        monkeypatch.setenv("PPL_STORE_URL", f"file://{data_root}/objects")
        roots = [data_root / "1", data_root / "2"]
    movers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PPL_DATA_ROOT": str(root)})
        for root in roots
    ]
    stop = threading.Event()
    seen: set[str] = set()

    def publish_and_read() -> None:
        number = 0
        while not stop.is_set():
            version = f"20260404T{number:06}-dddddd"
            publish(store, version)  # as a worker does meanwhile
            store.activate("dog", version)
            seen.add(store.resolve("dog", "champion"))
            number += 1

    worker = threading.Thread(target=publish_and_read)
    worker.start()
    won = [int(mover.communicate(timeout=120)[0]) for mover in movers]
    stop.set()
    worker.join()
    assert all(won)
    if isinstance(store, SharedVersions):
        store.poll()
    assert store.alias("dog", "champion") == (V1, V2)[sum(won) % 2]
    assert seen <= {V1, V2}
