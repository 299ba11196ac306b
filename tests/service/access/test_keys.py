"""API keys: how they are kept, and what they open."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.access.guard import needed_scope
from service.access.keys import KeyStore, Scope
from service.contract.errors import StoreCorrupt, UnknownKey
from service.contract.objects import Objects
from service.contract.shared_folders import SharedFolders
from service.runtime.settings import Settings


def test_key_is_found_again_and_only_its_hash_is_kept(data_root):
    store = KeyStore(data_root)
    key, text = store.create("lab", [Scope.READ])
    assert re.fullmatch(r"ppl_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", text)
    assert store.find(text) == key
    assert KeyStore(data_root).find(text) == key
    (path,) = (data_root / "keys").glob("*.json")
    assert text.split("_", 2)[2] not in path.read_text()
    assert text not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "sha256" not in key.model_dump()


SECRET = "a" * 43


@pytest.mark.parametrize("wrong", ["", "ppl_", "x" * 5000, f"ppl_000000000000_{SECRET}", f"ppl_../../x_{SECRET}", "é"])
def test_what_is_no_key_opens_nothing(data_root, wrong):
    store = KeyStore(data_root)
    store.create("lab", [Scope.READ])
    assert store.find(wrong) is None


def test_secret_of_another_key_opens_nothing(data_root):
    store = KeyStore(data_root)
    (_, one), (_, two) = store.create("a", [Scope.READ]), store.create("b", [Scope.TRAIN])
    assert store.find(f"{one[:16]}_{two[17:]}") is None


def test_revoked_key_opens_nothing_and_stays_known(data_root):
    store = KeyStore(data_root)
    key, text = store.create("lab", [Scope.TRAIN])
    assert store.revoke(key.id).revoked_at
    assert store.revoke(key.id) == store.keys()[0]
    assert store.find(text) is None
    with pytest.raises(UnknownKey, match="ppl keys list"):
        store.revoke("0" * 12)


def test_another_process_sees_a_new_key_at_once(data_root, monkeypatch):
    monkeypatch.setattr("service.access.keys.RELOAD_S", 1000.0)
    gateway, operator = KeyStore(data_root), KeyStore(data_root)
    _, first = operator.create("first", [Scope.READ])
    assert gateway.find(first)
    _, text = operator.create("lab", [Scope.READ])
    assert gateway.find(text)
    assert gateway.find("ppl_000000000000_" + "a" * 43) is None


def test_key_is_read_once_in_a_while_also_if_it_is_damaged(data_root, monkeypatch):
    monkeypatch.setattr("service.access.keys.RELOAD_S", 1000.0)
    store = KeyStore(data_root)
    (key, text), (_, other) = store.create("lab", [Scope.READ]), store.create("other", [Scope.READ])
    (data_root / "keys" / f"{key.id}.json").write_text("{")
    gateway = KeyStore(data_root)
    assert (gateway.find(text), gateway.find(other).name) == (None, "other")
    shutil.rmtree(data_root / "keys")
    assert (gateway.find(text), gateway.find(other).name) == (None, "other")


def test_another_process_sees_a_revoked_key_soon(data_root, monkeypatch):
    monkeypatch.setattr("service.access.keys.RELOAD_S", 0.0)
    gateway, operator = KeyStore(data_root), KeyStore(data_root)
    assert gateway.find("ppl_000000000000_" + "a" * 43) is None
    key, text = operator.create("lab", [Scope.READ])
    assert gateway.find(text)
    operator.revoke(key.id)
    assert gateway.find(text) is None


@pytest.mark.parametrize(("name", "scopes"), [("", ["read"]), ("x" * 81, ["read"]), ("a\nb", ["read"]), ("lab", [])])
def test_bad_key_is_refused(data_root, name, scopes):
    with pytest.raises(ValueError):
        KeyStore(data_root).create(name, [Scope(scope) for scope in scopes])
    assert KeyStore(data_root).keys() == []


def test_damaged_file_is_said_and_the_other_keys_go_on(data_root, caplog):
    store = KeyStore(data_root)
    key, text = store.create("lab", [Scope.READ])
    _, other = store.create("other", [Scope.READ])
    (data_root / "keys" / f"{key.id}.json").write_text("{")
    with pytest.raises(StoreCorrupt, match=key.id):
        store.keys()
    gateway = KeyStore(data_root)
    assert gateway.find(text) is None
    assert gateway.find(other)
    assert key.id in caplog.text
    revoked = store.revoke(other.split("_")[1])
    assert revoked.revoked_at


def test_unreadable_key_file_affects_no_other_key_and_is_read_again(data_root, caplog, monkeypatch):
    """For example a key that root created or revoked, or a process without free descriptors."""
    monkeypatch.setattr("service.access.keys.RELOAD_S", 0.0)
    store = KeyStore(data_root)
    key, text = store.create("lab", [Scope.READ])
    _, other = store.create("other", [Scope.READ])
    path = data_root / "keys" / f"{key.id}.json"
    content = path.read_text()
    path.unlink()
    path.mkdir()
    gateway = KeyStore(data_root)
    for _ in range(3):
        assert gateway.find(text) is None
        assert gateway.find(other)
    assert caplog.text.count(key.id) == 1
    with pytest.raises(StoreCorrupt, match=key.id):
        store.keys()
    path.rmdir()
    path.write_text(content)
    assert gateway.find(text) == key


def test_damaged_key_does_not_keep_a_gateway_from_starting(data_root):
    store = KeyStore(data_root)
    key, _ = store.create("lab", [Scope.READ])
    (data_root / "keys" / f"{key.id}.json").write_text("{")
    assert store.ensure_first() is None
    assert not store.first_key_file.exists()


# the first key


def test_gateways_that_start_together_make_one_first_key(data_root):
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        KeyStore(data_root).ensure_first()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = data_root / "first-api-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store = KeyStore(data_root)
    (key,) = store.keys()
    assert store.find(path.read_text().strip()) == key
    assert key.allows(Scope.TRAIN)
    assert key.allows(Scope.READ)
    assert [entry.name for entry in data_root.iterdir() if entry.name.startswith(".")] == []


def test_machines_that_start_together_make_one_first_key(tmp_path: Path) -> None:
    """The others have no file that names a key which opens nothing, or a second one that opens all."""
    count = 6
    gate = threading.Barrier(count)

    def start(number: int) -> Path | None:
        store = KeyStore(tmp_path / str(number), SharedFolders(Objects(f"file://{tmp_path}/objects"), "platform"))
        gate.wait()
        return store.ensure_first()

    with ThreadPoolExecutor(count) as pool:
        (path,) = [found for found in pool.map(start, range(count)) if found]
    assert list(tmp_path.glob("*/first-api-key")) == [path]
    for number in range(count):
        store = KeyStore(tmp_path / str(number), SharedFolders(Objects(f"file://{tmp_path}/objects"), "platform"))
        (key,) = store.keys()
        assert store.find(path.read_text().strip()) == key


def test_first_key_whose_answer_was_lost_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KeyStore(tmp_path / "a", SharedFolders(Objects(f"file://{tmp_path}/objects"), "platform"))
    replace = Objects.replace

    def lose_answer(*arguments: Any) -> Any:
        replace(*arguments)
        monkeypatch.setattr(Objects, "replace", replace)
        return replace(*arguments)  # as the client of the object store repeats it

    monkeypatch.setattr(Objects, "replace", lose_answer)
    path = store.ensure_first()
    assert path is not None
    assert store.find(path.read_text().strip())


def test_first_key_that_was_written_and_not_registered_is_registered_at_the_next_start(data_root):
    store = KeyStore(data_root)
    path = store.ensure_first()
    for file in (data_root / "keys").iterdir():  # as if the gateway had died between the two
        file.unlink()
    again = KeyStore(data_root)
    assert again.ensure_first() == path
    assert again.find(path.read_text().strip())


def test_revoked_first_key_does_not_come_back(data_root):
    store = KeyStore(data_root)
    text = store.ensure_first().read_text().strip()
    store.revoke(store.keys()[0].id)
    assert store.ensure_first() is None
    assert store.find(text) is None


# when keys are needed


@pytest.mark.parametrize(
    ("host", "api_keys", "needed"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("::1", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("192.168.1.5", None, True),
        ("gpu-box", None, True),
        ("127.0.0.1", True, True),
        ("127.0.0.1", False, False),
    ],
)
def test_keys_are_needed_beyond_the_loopback_address(host, api_keys, needed):
    assert Settings(host=host, api_keys=api_keys).needs_keys is needed


def test_keys_can_be_off_on_the_loopback_address_only():
    with pytest.raises(ValueError, match=r"PPL_API_KEYS is false and PPL_HOST is 0\.0\.0\.0"):
        Settings(host="0.0.0.0", api_keys=False)


# over HTTP


@pytest.fixture
async def guarded(serve, data_root):
    http = await serve(api_keys=True)
    store = KeyStore(data_root)
    http.read = {"Authorization": f"Bearer {store.create('reader', [Scope.READ])[1]}"}
    http.train = {"Authorization": f"Bearer {store.create('trainer', [Scope.TRAIN])[1]}"}
    return http


def operations(app) -> list[tuple[str, str]]:
    paths = app.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


async def test_every_operation_needs_a_key_of_its_scope(guarded, problem):
    """Also those that a later release adds: what is not known to look only needs the scope train."""
    seen = set()
    for method, path in operations(guarded.app):
        address = re.sub(r"\{\w+\}", "0123456789abcdef01234567", path)
        needed = needed_scope(method, address)
        declared = guarded.app.openapi()["paths"][path][method.lower()].get("security")
        assert declared == (None if needed is None else [{"ApiKey": [str(needed)]}]), (method, path)
        if needed is None:
            continue
        refused = await guarded.request(method, address)
        assert problem(refused, 401, "unauthorized"), (method, path)
        assert refused.headers["www-authenticate"].startswith("Bearer")
        as_reader = await guarded.request(method, address, headers=guarded.read)
        assert (as_reader.status_code == 403) is (needed is Scope.TRAIN), (method, path)
        as_trainer = await guarded.request(method, address, headers=guarded.train)
        assert as_trainer.status_code not in (401, 403), (method, path)
        kept = as_trainer.headers["cache-control"]
        assert kept == "no-store" or kept.startswith(("private", "no-cache")), (method, path)
        assert as_trainer.headers["x-content-type-options"] == "nosniff", (method, path)
        seen.add(needed)
    assert seen == {Scope.READ, Scope.TRAIN}


async def test_health_metrics_and_documentation_are_open_by_default(guarded):
    for path in ("/livez", "/metrics", "/docs", "/openapi.json", "/"):
        assert (await guarded.get(path)).status_code in (200, 307), path
    assert (await guarded.get("/readyz")).status_code == 503  # no worker


async def test_health_and_metrics_have_switches_of_their_own(serve, data_root, problem):
    http = await serve(api_keys=True, open_health=False, open_metrics=False)
    key = {"Authorization": f"Bearer {KeyStore(data_root).create('probe', [Scope.READ])[1]}"}
    problem(await http.get("/metrics"), 401, "unauthorized")
    assert (await http.get("/metrics", headers=key)).status_code == 200
    # asked from this machine itself, as a container's own check is
    assert (await http.get("/livez")).status_code == 200
    import httpx

    far = httpx.ASGITransport(http.app, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=far, base_url="http://gateway") as stranger:
        problem(await stranger.get("/livez"), 401, "unauthorized")
        problem(await stranger.get("/readyz"), 401, "unauthorized")
        assert (await stranger.get("/livez", headers=key)).status_code == 200


@pytest.mark.parametrize("path", ["//livez", "/livez/", "/docs/../priors", "/LIVEZ", "/openapi.json/x"])
async def test_odd_paths_open_nothing(guarded, problem, path):
    problem(await guarded.get(f"http://gateway{path}"), 401, "unauthorized")


async def test_key_comes_in_either_header(guarded, problem):
    key = guarded.read["Authorization"].removeprefix("Bearer ")
    assert (await guarded.get("/priors", headers={"X-API-Key": key})).status_code == 200
    assert (await guarded.get("/priors", headers={"Authorization": f"bearer  {key}"})).status_code == 200
    refused = problem(await guarded.get("/priors", headers={"Authorization": f"Basic {key}"}), 401, "unauthorized")
    assert "'Basic'" in refused["detail"]
    refused = problem(await guarded.get("/priors", headers={"Authorization": key}), 401, "unauthorized")
    assert "names no scheme" in refused["detail"]
    assert key[:8] not in refused["detail"]
    assert key not in refused["detail"]
    problem(await guarded.get("/priors", headers={"Authorization": "Bearer nonsense"}), 401, "unauthorized")


async def test_refusal_says_what_the_key_lacks(guarded, problem):
    document = problem(await guarded.post("/train-jobs", headers=guarded.read), 403, "forbidden")
    assert document["needed_scope"] == "train"
    assert "reader" in document["detail"]


async def test_without_keys_nothing_is_asked(http):
    assert (await http.get("/priors")).status_code == 200
    security = http.app.openapi()["paths"]["/priors"]["get"]["security"]
    assert security == [{"ApiKey": ["read"]}, {}]


async def test_estimating_needs_the_scope_read_only(guarded, consumer, publish, make_picture):
    publish("dog")
    files = [("images", ("a.png", make_picture()))]
    answer = await guarded.post("/estimate", data={"category": "dog"}, files=files, headers=guarded.read)
    assert answer.status_code == 200


async def test_a_reader_stops_and_removes_its_own_estimates_only(guarded, publish, make_picture, data_root, problem):
    publish("dog")
    another = {"Authorization": f"Bearer {KeyStore(data_root).create('another', [Scope.READ])[1]}"}

    async def begin() -> str:
        answer = await guarded.post(
            "/estimate",
            data={"category": "dog"},
            files=[("images", ("a.png", make_picture()))],
            headers={**guarded.read, "Prefer": "respond-async"},
        )
        assert answer.status_code == 202, answer.text
        return f"/estimates/{answer.json()['id']}"

    first, second = await begin(), await begin()
    assert (await guarded.get(first, headers=another)).status_code == 200
    problem(await guarded.post(f"{first}/cancel", headers=another), 403, "forbidden")
    problem(await guarded.delete(first, headers=another), 403, "forbidden")
    assert (await guarded.post(f"{first}/cancel", headers=guarded.read)).status_code == 200
    assert (await guarded.post(f"{second}/cancel", headers=guarded.train)).status_code == 200
    for path, key in ((first, guarded.read), (second, guarded.train)):
        for _ in range(50):
            if (await guarded.get(path, headers=key)).json()["status"] == "cancelled":
                break
            await asyncio.sleep(0.05)
        assert (await guarded.delete(path, headers=key)).status_code == 204


async def test_job_says_which_key_asked_for_it(guarded, data_root):
    from tests.service.training.test_train_jobs import GOOD

    answer = await guarded.post(
        "/train-jobs", data={"category": "dog"}, files={"archive": ("a.zip", GOOD)}, headers=guarded.train
    )
    (trainer,) = [key for key in KeyStore(data_root).keys() if key.name == "trainer"]  # noqa: SIM118 a method of ours
    assert answer.json()["created_by"] == trainer.id


def test_command_makes_shows_and_revokes_keys(data_root):
    from typer.testing import CliRunner

    from service.cli.main import app

    def ppl(*arguments: str):
        return CliRunner().invoke(app, ["keys", *arguments, "--data-root", str(data_root)])

    made = json.loads(ppl("create", "lab", "--json").stdout)
    assert made["scopes"] == ["read"]
    assert KeyStore(data_root).find(made["key"]).name == "lab"
    both = ppl("create", "pipe", "--scope", "read", "--scope", "train")
    assert "read, train" in both.stdout
    listed = ppl("list").stdout
    assert made["id"] in listed
    assert "pipe" in listed
    assert made["key"] not in listed
    assert ppl("revoke", made["id"]).exit_code == 0
    assert KeyStore(data_root).find(made["key"]) is None
    assert ppl("revoke", "0" * 12).exit_code == 1
    assert ppl("create", "").exit_code == 2


def test_keys_of_several_machines_are_those_of_all(tmp_path: Path) -> None:
    shared = [SharedFolders(Objects(f"file://{tmp_path}/objects"), "platform") for _ in range(2)]
    one, other = (KeyStore(tmp_path / name, folders) for name, folders in zip("ab", shared, strict=True))
    assert one.ensure_first() is not None
    assert other.ensure_first() is None, "there is one already"
    lab, lab_text = one.create("lab", [Scope.READ])
    home, home_text = other.create("home", [Scope.TRAIN])
    names = [{key.name for key in store.keys()} for store in (one, other)]  # noqa: SIM118 (not a mapping)
    assert names == [{"first", "lab", "home"}] * 2
    assert one.find(home_text) == home
    assert other.find(lab_text) == lab
    other.revoke(lab.id)
    one.revoke(home.id)
    fresh = KeyStore(tmp_path / "c", shared[0])
    fresh.follow()
    assert fresh.find(lab_text) is None
    assert fresh.find(home_text) is None
    assert (tmp_path / "c" / "keys").stat().st_mode & 0o777 == 0o700
