"""Estimates in the background in an object store, worked on and served by gateways that share nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.contract.errors import Conflict, KeyReused, StoreUnavailable, UnknownEstimate
from service.contract.objects import Objects
from service.contract.routing import time_ordered_id
from service.contract.settings import CommonSettings
from service.contract.versions.shared import SharedVersions
from service.contract.versions.store import VersionStore
from service.estimates import store
from service.estimates.background import shared_records, shared_store
from service.estimates.background.shared_store import SharedEstimates
from service.estimates.schemas import BackgroundEstimate, EstimateProgress, EstimateStatus
from service.estimates.store import ID_DIGITS, ClaimLost, EstimateRecord, EstimateStore
from tests.service.conftest import RESPOND_ASYNC
from tests.support.clocks import set_clock
from tests.support.s3 import s3_server

from .test_background import ended


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as environment:
        yield environment


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"file://{tmp_path}/bucket"
    server = request.getfixturevalue("server")
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"{server['PPL_STORE_URL']}/{hashlib.sha256(str(tmp_path).encode()).hexdigest()}"


@pytest.fixture
def machines(url: str, tmp_path: Path) -> tuple[SharedEstimates, SharedEstimates]:
    one, other = (SharedEstimates(tmp_path / name, Objects(url)) for name in ("one", "other"))
    return one, other


def make_record(pictures: int = 3) -> EstimateRecord:
    shown = BackgroundEstimate(
        id=time_ordered_id(ID_DIGITS),
        status=EstimateStatus.QUEUED,
        category="dog",
        version="v",
        format="native",
        created_at=datetime.now(UTC),
        progress=EstimateProgress(total=pictures),
        created_by=None,
    )
    return EstimateRecord(shown=shown, fields={}, names=[f"{n}.png" for n in range(pictures)], size_bytes=7)


def upload(store: EstimateStore, record: EstimateRecord) -> EstimateRecord:
    for number in range(len(record.names)):
        path = store.picture(record.shown.id, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"picture %d" % number)
    return record


def submit(store: EstimateStore, record: EstimateRecord | None = None, key: str | None = None) -> EstimateRecord:
    return store.submit(upload(store, record or make_record()), lambda pending: None, key)


def stored(store: SharedEstimates, *kinds: str) -> list[str]:
    return [name for kind in kinds for name, _, _ in store._objects.scan(kind)]


def test_another_machine_continues_once_the_first_is_silent(machines, monkeypatch):
    """By its own monotonic clock, from the poses that were sent; the first one can't write any more."""
    monkeypatch.setattr(shared_store, "CLAIM_TTL_S", 1.0)
    one, other = machines
    estimate_id = submit(one).shown.id
    other.poll()
    assert other.list_waiting() == [estimate_id]
    with one.claim(estimate_id) as mine:
        assert mine
        record = one.record(estimate_id)
        record.shown.status = EstimateStatus.RUNNING
        one.write(record)
        one.path(estimate_id, "lines").write_bytes(b"one\ntwo\n")
        one._save(estimate_id)
        one.path(estimate_id, "lines").write_bytes(b"one\ntwo\nthree\n")  # not sent
        for _ in range(12):  # renewed in time, it stays
            other.poll()
            with other.claim(estimate_id) as taken:
                assert not taken
            monkeypatch.setattr(shared_store, "RENEW_EVERY_S", 0.0)
            one.renew()
            time.sleep(0.1)
        other.poll()
        time.sleep(1.1)
        with other.claim(estimate_id) as taken:  # silent for longer
            assert taken
            other.complete(estimate_id)
            assert other.path(estimate_id, "lines").read_bytes() == b"one\ntwo\n"
            assert other.picture(estimate_id, 2).read_bytes() == b"picture 2"
            one.renew()
            one.poll()
            record.shown.progress.done = 3
            with pytest.raises(ClaimLost):
                one.write(record)
            with pytest.raises(ClaimLost):
                one.end(record, EstimateStatus.FAILED)
            theirs = other.record(estimate_id)
            other.path(estimate_id, "result").write_bytes(b"poses")
            other.end(theirs, EstimateStatus.SUCCEEDED)
    one.poll()
    assert one.record(estimate_id).shown.status is EstimateStatus.SUCCEEDED
    assert one.file(estimate_id, "result").read_bytes() == b"poses"
    assert not one.path(estimate_id, "pictures").exists()
    assert one.list_waiting() == other.list_waiting() == []


def test_claim_of_a_crashed_process_of_the_same_machine_is_free_at_once(machines, tmp_path, url):
    one, _ = machines
    estimate_id = submit(one).shown.id
    one._take(estimate_id)  # and its process was killed: the file's lock is free
    again = SharedEstimates(tmp_path / "one", Objects(url))
    with again.claim(estimate_id) as mine:
        assert mine


def test_released_claim_is_free_at_once_with_all_poses_found(machines):
    one, other = machines
    estimate_id = submit(one).shown.id
    with one.claim(estimate_id):
        one.path(estimate_id, "lines").write_bytes(b"one\ntwo\n")
    other.poll()
    with other.claim(estimate_id) as mine:
        assert mine
        other.complete(estimate_id)
        assert other.path(estimate_id, "lines").read_bytes() == b"one\ntwo\n"


def test_only_one_of_many_machines_claims(url, tmp_path):
    stores = [SharedEstimates(tmp_path / str(n), Objects(url)) for n in range(6)]
    estimate_id = submit(stores[0]).shown.id
    for machine in stores:
        machine.poll()
    with ThreadPoolExecutor(6) as pool:
        claims = list(pool.map(lambda store: store._take(estimate_id), stores))
    assert sum(claim is not None for claim in claims) == 1


def test_cancelled_on_one_machine_stops_on_the_other_and_leaves_no_files(machines):
    one, other = machines
    estimate_id = submit(one).shown.id
    with one.claim(estimate_id):
        record = one.record(estimate_id)
        other.cancel(estimate_id)
        assert not other.record(estimate_id).shown.status.ended, "it is not its own to end"
        assert not one.is_cancelled(estimate_id)
        one.poll()
        assert one.is_cancelled(estimate_id)
        one.end(record, EstimateStatus.CANCELLED)
    assert stored(one, "estimate-files") == []
    other.poll()
    assert other.record(estimate_id).shown.status is EstimateStatus.CANCELLED
    with pytest.raises(Conflict):
        other.cancel(estimate_id)


def test_waiting_one_is_cancelled_where_its_pictures_are_not(machines):
    one, other = machines
    estimate_id = submit(one).shown.id
    assert other.cancel(estimate_id).shown.status is EstimateStatus.CANCELLED
    assert stored(one, "estimate-files") == []
    one.poll()
    assert one.list_waiting() == []
    assert not one.path(estimate_id, "pictures").exists()


def test_a_key_names_one_estimate_on_all_machines(url, tmp_path):
    stores = [SharedEstimates(tmp_path / str(n), Objects(url)) for n in range(5)]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda store: submit(store, key="k").shown.id, stores))
    left = {record.shown.id for store in stores for record in [store._find_submitted("k")] if record}
    assert left == set(found)
    assert len(left) == 1
    with pytest.raises(KeyReused):
        submit(stores[3], make_record(2), key="k")


def test_a_key_whose_gateway_crashed_before_the_record_is_free(machines, monkeypatch):
    monkeypatch.setattr(shared_records, "TAKEOVER_S", 0.1)
    one, other = machines
    one._root.mkdir(parents=True)
    assert one._take_key("k", "0" * ID_DIGITS) is None
    record = submit(other, key="k")
    assert one._find_submitted("k").shown.id == record.shown.id


@pytest.mark.parametrize("stops_s", [0.0, 0.3])
def test_gateway_that_stops_between_key_and_record_doubles_no_estimate(machines, monkeypatch, stops_s):
    """It goes on before the other one takes the key from it, or after."""
    monkeypatch.setattr(shared_records, "TAKEOVER_S", 0.1)
    one, other = machines
    create, stopped, goes_on = one._create, threading.Event(), threading.Event()

    def stop(record: EstimateRecord) -> None:
        stopped.set()
        goes_on.wait(10)
        create(record)

    monkeypatch.setattr(one, "_create", stop)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(submit, one, key="k")
        assert stopped.wait(10)
        second = pool.submit(submit, other, key="k")
        time.sleep(stops_s)
        goes_on.set()
        ids = {first.result(20).shown.id, second.result(20).shown.id}
    assert ids == {other._find_submitted("k").shown.id}


def test_removed_on_one_machine_is_removed_on_all(machines):
    one, other = machines
    estimate_id = submit(one, key="k").shown.id
    other.cancel(estimate_id)
    one.remove(estimate_id)
    with pytest.raises(UnknownEstimate):
        one.record(estimate_id)
    other.poll()
    assert other.page(10).items == []
    assert not other.path(estimate_id).exists()
    assert stored(one, "estimates", "estimate-files") == []
    other.sweep(1000.0, -1.0)
    assert stored(one, "estimate-requests") == [], "a key of none is swept"


def test_limits_count_the_estimates_of_all_machines(machines):
    one, other = machines
    submit(one)
    seen = []
    other.submit(upload(other, make_record()), lambda pending: seen.append(len(pending)))
    assert seen == [1]


def test_refused_submission_leaves_nothing(machines):
    def refuse(pending) -> None:
        raise StoreUnavailable("away")

    one, _ = machines
    record = upload(one, make_record())
    with pytest.raises(StoreUnavailable):
        one.submit(record, refuse, "k")
    one.discard(record.shown.id)
    assert stored(one, "estimates", "estimate-files", "estimate-requests") == []


def test_what_a_crashed_submission_left_is_swept(machines):
    one, other = machines
    record = upload(one, make_record())
    one._files.send(record.shown.id, one.path(record.shown.id))
    kept = submit(one).shown.id
    assert other.sweep(1000.0, 1000.0) == []
    assert stored(one, "estimate-files")
    other.sweep(1000.0, -1.0)
    assert {name.split("/")[1] for name in stored(one, "estimate-files")} == {kept}


@pytest.mark.parametrize("offset_s", [10 * 86_400.0, -10 * 86_400.0])
@pytest.mark.parametrize("url", [pytest.param("s3", marks=pytest.mark.integration)], indirect=True)
def test_ages_are_by_the_clock_of_the_store(machines, offset_s, monkeypatch):
    one, other = machines
    record, unfinished = submit(one), upload(one, make_record())
    with one.claim(record.shown.id):
        one.path(record.shown.id, "result").write_bytes(b"poses")
        with monkeypatch.context() as elsewhere:
            set_clock(elsewhere, -offset_s, store)
            one.end(one.record(record.shown.id), EstimateStatus.SUCCEEDED)
    one._files.send(unfinished.shown.id, one.path(unfinished.shown.id))
    other.poll()
    set_clock(monkeypatch, offset_s, store)
    assert other.sweep(3600.0, 3600.0) == []
    assert len({name.split("/")[1] for name in stored(one, "estimate-files")}) == 2
    assert other.sweep(-1.0, 3600.0) == [record.shown.id]


def test_oldest_results_are_deleted_on_all_machines(machines):
    one, other = machines
    ids = []
    for _ in range(3):
        record = submit(one)
        ids.append(record.shown.id)
        with one.claim(record.shown.id):
            one.path(record.shown.id, "result").write_bytes(b"x" * 100)
            one.end(one.record(record.shown.id), EstimateStatus.SUCCEEDED)
    other.poll()
    assert other.trim_results(250) == ids[:1], "the sizes are known where the files are not"
    one.poll()
    assert sorted(item.id for item in one.page(10).items) == sorted(ids[1:])


def test_estimates_of_before_the_store_are_sent_to_it(url, tmp_path):
    before = EstimateStore(tmp_path / "one")
    waiting, done = submit(before), submit(before, key="k")
    before.path(done.shown.id, "result").write_bytes(b"poses")
    before.end(done, EstimateStatus.SUCCEEDED)
    one, other = (SharedEstimates(tmp_path / name, Objects(url)) for name in ("one", "other"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda store: store.poll(), (one, SharedEstimates(tmp_path / "one", Objects(url)))))
    other.poll()
    assert other.list_waiting() == [waiting.shown.id]
    assert other.file(done.shown.id, "result").read_bytes() == b"poses"
    assert submit(one, key="k").shown.id == done.shown.id


def test_store_that_is_away_stops_no_estimate(machines, monkeypatch):
    """Progress is kept here meanwhile; an end that can't be sent raises, and is sent later."""
    one, other = machines
    estimate_id = submit(one).shown.id
    monkeypatch.setattr(shared_store, "RENEW_EVERY_S", 0.0)
    with one.claim(estimate_id):
        record = one.record(estimate_id)
        record.shown.status = EstimateStatus.RUNNING
        one.write(record)
        with monkeypatch.context() as outage:

            def fail(*arguments: object) -> None:
                raise StoreUnavailable("away")

            for name in ("read", "replace", "upload", "scan", "delete"):
                outage.setattr(Objects, name, fail)
            record.shown.progress.done = 2
            one.write(record)
            one.renew()
            with pytest.raises(StoreUnavailable):
                one.end(record.model_copy(deep=True), EstimateStatus.FAILED)
        assert one.record(estimate_id).shown.progress.done == 2
        one.renew()
        other.poll()
        assert other.record(estimate_id).shown.progress.done == 2
        assert other.record(estimate_id).shown.status is EstimateStatus.RUNNING


@pytest.fixture
def publish_shared(publish: Callable[..., str], data_root: Path, url: str) -> str:
    """Publish a version of dog in the object store."""
    version, source = publish("dog"), VersionStore(data_root)
    store = SharedVersions(data_root / "publisher", Objects(url))
    with store.staging("dog", version) as folder:
        for path in source.path("dog", version).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        store.publish(folder, "dog", version)
    store.change("dog", lambda state: state.put_alias("active", version))
    return version


async def test_result_is_served_by_every_gateway(serve, send, publish_shared, consumer, url, tmp_path):
    one, other = [await serve(store_url=url, data_root=tmp_path / name) for name in ("a", "b")]
    begun = [(await send(client=one, headers={**RESPOND_ASYNC, "Idempotency-Key": "k"})).json() for _ in range(2)]
    assert begun[0]["id"] == begun[1]["id"]
    again = await send(client=other, headers={**RESPOND_ASYNC, "Idempotency-Key": "k"})
    assert again.json()["id"] == begun[0]["id"]
    csv = (await send(client=other, format="csv")).json()["id"]
    found = [await ended(client, begun[0]["id"]) for client in (one, other)]
    assert [document["status"] for document in found] == ["succeeded"] * 2
    assert found[0]["result"] == found[1]["result"]
    for client in (one, other):  # each sees the end at its next poll
        assert (await ended(client, csv))["errors"] == []
        assert (await client.get(f"/estimates/{csv}/result")).text.count("\n") > 3
        assert {item["id"] for item in (await client.get("/estimates")).json()["items"]} == {csv, begun[0]["id"]}
    assert (await one.delete(f"/estimates/{csv}")).status_code == 204
    for _ in range(100):
        if (await other.get(f"/estimates/{csv}")).status_code == 404:
            break
        await asyncio.sleep(0.05)
    assert (await other.get(f"/estimates/{csv}/result")).status_code == 404
    names = [name for name, _, _ in Objects(url).scan("estimate-files")]
    assert {name.split("/")[1] for name in names} == {begun[0]["id"]}
    assert len(names) == 2, "the result and the list of files; the pictures are gone"


async def test_stopped_gateway_leaves_its_work_to_another(
    serve, make_settings, send, publish_shared, consumer, url, tmp_path
):
    one, other = [await serve(store_url=url, data_root=tmp_path / name) for name in ("a", "b")]
    consumer.gate.clear()
    begun = (await send(client=one)).json()["id"]
    for _ in range(100):
        if one.gateway.estimates._claims or other.gateway.estimates._claims:
            break
        await asyncio.sleep(0.05)
    first, second = (one, other) if one.gateway.estimates._claims else (other, one)
    await first.gateway.background.close()
    for loop in first.gateway._loops:
        loop.cancel()
    consumer.gate.set()
    assert (await ended(second, begun, 30))["status"] == "succeeded"


def test_settings_choose_the_store(tmp_path, url):
    settings = CommonSettings(data_root=tmp_path, store_url=url)
    assert isinstance(shared_store.open_estimates(settings), SharedEstimates)
    assert not isinstance(
        shared_store.open_estimates(CommonSettings(data_root=tmp_path, store_url=None)), SharedEstimates
    )
