"""Estimates in the background."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest

from service.contract.errors import ModelFailed
from service.contract.routing import time_ordered_id
from service.estimates import store
from service.estimates.background.runner import AT_ONCE
from service.estimates.results import StoredOutcomes
from service.estimates.schemas import EstimateStatus
from service.estimates.store import ID_DIGITS, EstimateStore
from tests.service.conftest import RESPOND_ASYNC
from tests.support.clocks import set_clock


async def ended(client, estimate_id: str, timeout_s: float = 20.0) -> dict:
    deadline = time.monotonic() + timeout_s
    while True:
        found = (await client.get(f"/estimates/{estimate_id}")).json()
        if EstimateStatus(found["status"]).ended:
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


def pictures_of(data_root, estimate_id: str) -> list:
    return list((data_root / "estimates" / estimate_id / "pictures").glob("*"))


async def test_answer_comes_at_once_and_poses_later(http, send, publish, consumer, data_root):
    version = publish("dog")
    consumer.gate.clear()
    answer = await send()
    assert answer.status_code == 202, answer.text
    begun = answer.json()
    assert answer.headers["location"] == f"/estimates/{begun['id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert (begun["status"], begun["version"], begun["progress"]) == (
        "queued",
        version,
        {"done": 0, "failed": 0, "total": 3},
    )
    assert len(pictures_of(data_root, begun["id"])) == 3
    consumer.gate.set()
    found = await ended(http, begun["id"])
    assert found["status"] == "succeeded"
    assert found["progress"] == {"done": 3, "failed": 0, "total": 3}
    at_once = (await send(headers={})).json()
    assert found["result"]["images"] == at_once["images"]
    assert found["result"]["errors"] == []
    assert (await http.get(found["result_url"])).json() == found["result"]
    assert pictures_of(data_root, begun["id"]) == []


@pytest.mark.parametrize("format", ["coco", "csv"])
async def test_other_formats_are_the_result(http, send, publish, consumer, format):
    publish("dog")
    begun = (await send(format=format)).json()
    found = await ended(http, begun["id"])
    assert "result" not in found
    answer = await http.get(found["result_url"])
    at_once = await send(headers={}, format=format)
    assert answer.headers["content-type"] == at_once.headers["content-type"]
    if format == "csv":
        assert answer.text == at_once.text
    else:
        assert answer.json()["annotations"] == at_once.json()["annotations"]


async def test_a_bad_picture_does_not_hinder_the_others(http, send, publish, consumer, make_picture):
    publish("dog")
    files = [
        ("images", ("a.png", make_picture())),
        ("images", ("b.png", b"junk")),
        ("images", ("c.png", make_picture())),
    ]
    found = await ended(http, (await send(files)).json()["id"])
    assert found["status"] == "succeeded"
    assert found["progress"] == {"done": 3, "failed": 1, "total": 3}
    assert [image["index"] for image in found["result"]["images"]] == [0, 2]
    (error,) = found["result"]["errors"]
    assert (error["index"], error["code"]) == (1, "not_an_image")
    assert "b.png" in error["detail"]


@pytest.mark.parametrize("format", ["coco", "csv"])
async def test_other_formats_tell_what_failed_beside_the_result(http, send, publish, consumer, make_picture, format):
    publish("dog")
    files = [("images", ("a.png", make_picture())), ("images", ("b.png", b"no picture"))]
    found = await ended(http, (await send(files, format=format)).json()["id"])
    assert [(error["index"], error["code"]) for error in found["errors"]] == [(1, "not_an_image")]
    result = await http.get(f"/estimates/{found['id']}/result")
    if format == "coco":
        assert result.json()["errors"] == found["errors"]
    http.gateway.estimates.path(found["id"], "errors").unlink()  # as an earlier release left it
    again = await http.get(f"/estimates/{found['id']}")
    assert again.status_code == 200
    assert "errors" not in again.json()


async def test_what_was_begun_is_finished_by_the_next_gateway(serve, publish, make_consumer, make_picture):
    """The first gateway dies with some pictures done; the second does the rest, and only the rest."""
    publish("dog")
    consumer = await make_consumer()
    first = await serve(batch_limit=2)
    consumer.gate.clear()
    # no third gateway must be there to take it up
    pictures = [("images", (f"{n}.png", make_picture())) for n in range(3)]
    sent = await first.post("/estimate", data={"category": "dog"}, files=pictures, headers=RESPOND_ASYNC)
    begun = sent.json()
    while not consumer.batches:
        await asyncio.sleep(0.02)
    loop = next(task for task in first.gateway._loops if task.get_name() == "estimates")
    consumer.gate.set()
    files: EstimateStore = first.gateway.estimates
    while not len(StoredOutcomes(files.path(begun["id"], "lines"))):
        await asyncio.sleep(0.001)
    consumer.gate.clear()
    loop.cancel()
    await asyncio.wait([loop])
    await first.gateway.background.close()
    done = len(StoredOutcomes(files.path(begun["id"], "lines")))
    with files.path(begun["id"], "lines").open("ab") as file:
        file.write(b'{"index": 2, "po')  # cut short by the end of the process
    consumer.gate.set()
    before = sum(batch.count for batch in consumer.batches)
    second = await serve()
    found = await ended(second, begun["id"])
    assert [image["index"] for image in found["result"]["images"]] == [0, 1, 2]
    again = sum(batch.count for batch in consumer.batches) - before
    assert again <= 3 - done + 2  # those that were under way may come twice


async def test_it_waits_for_a_worker_instead_of_failing(serve, send, publish, make_consumer):
    publish("dog")
    http = await serve(estimate_timeout_s=0.3)
    begun = (await send(client=http)).json()
    await asyncio.sleep(1.5)
    assert (await http.get(f"/estimates/{begun['id']}")).json()["status"] == "running"
    await make_consumer()
    assert (await ended(http, begun["id"]))["progress"]["failed"] == 0


async def test_two_gateways_work_on_different_ones(serve, send, publish, consumer):
    publish("dog")
    first, second = await serve(), await serve()
    ids = [(await send(client=first)).json()["id"] for _ in range(4)]
    for estimate_id in ids:
        assert (await ended(second, estimate_id))["progress"] == {"done": 3, "failed": 0, "total": 3}


async def test_those_that_others_have_leave_room_for_more(http, send, publish, consumer):
    """Another gateway works on as many as it may; what comes after them is for this one."""
    publish("dog")
    files: EstimateStore = http.gateway.estimates
    loop = next(task for task in http.gateway._loops if task.get_name() == "estimates")
    loop.cancel()
    await asyncio.wait([loop])
    others = [(await send(client=http)).json()["id"] for _ in range(AT_ONCE)]
    with ExitStack() as held:
        assert all(held.enter_context(files.claim(estimate_id)) for estimate_id in others)
        last = (await send(client=http)).json()["id"]
        await http.gateway.background.start_waiting()
        assert (await ended(http, last))["status"] == "succeeded"
        assert {files.record(estimate_id).shown.status for estimate_id in others} == {EstimateStatus.QUEUED}
    running = http.gateway.background._running.values()  # the last one keeps its place a moment longer than its status
    await asyncio.wait_for(asyncio.gather(*running), 20)
    await http.gateway.background.start_waiting()
    for estimate_id in others:
        assert (await ended(http, estimate_id))["status"] == "succeeded"


async def test_damaged_records_do_not_hold_up_the_others(http, send, publish, consumer, caplog):
    publish("dog")
    files: EstimateStore = http.gateway.estimates
    damaged = []
    for _ in range(AT_ONCE):
        estimate_id = time_ordered_id(ID_DIGITS)
        files.picture(estimate_id, 0).parent.mkdir(parents=True)
        (files.path(estimate_id) / "record.json").write_text("{")
        damaged.append(estimate_id)
    last = (await send(client=http)).json()["id"]
    for estimate_id in damaged:
        (files.path(last).parent / "waiting" / estimate_id).touch()
    assert (await ended(http, last))["status"] == "succeeded"
    after = (await send(client=http)).json()["id"]
    assert (await ended(http, after))["status"] == "succeeded"
    await http.gateway.background.start_waiting()
    await asyncio.sleep(0.2)
    await http.gateway.background.start_waiting()
    assert sum("estimate postponed" in record.getMessage() for record in caplog.records) == AT_ONCE


async def test_cancelled_right_before_its_end_is_cancelled(http, send, publish, consumer):
    publish("dog")
    files: EstimateStore = http.gateway.estimates
    consumer.gate.clear()
    begun = (await send(client=http)).json()["id"]
    while not consumer.batches:
        await asyncio.sleep(0.02)
    assert (await http.post(f"/estimates/{begun}/cancel")).status_code == 200
    consumer.gate.set()  # sooner than its gateway looks again
    assert (await ended(http, begun))["status"] == "cancelled"
    assert not files.path(begun, "result").exists()


async def test_cancelled_while_it_is_worked_on(http, send, publish, consumer, problem, data_root):
    publish("dog")
    consumer.gate.clear()
    begun = (await send()).json()
    while not consumer.batches:
        await asyncio.sleep(0.02)
    problem(await http.delete(f"/estimates/{begun['id']}"), 409, "conflict")
    problem(await http.get(f"/estimates/{begun['id']}/result"), 409, "conflict")
    assert (await http.post(f"/estimates/{begun['id']}/cancel")).status_code == 200
    assert (await ended(http, begun["id"]))["status"] == "cancelled"
    consumer.gate.set()
    problem(await http.post(f"/estimates/{begun['id']}/cancel"), 409, "conflict")
    assert (await http.delete(f"/estimates/{begun['id']}")).status_code == 204
    problem(await http.get(f"/estimates/{begun['id']}"), 404, "unknown_estimate")
    assert list((data_root / "estimates").glob("[0-9a-f]*")) == []


async def test_cancelled_before_anybody_took_it(data_root, http, send, publish):
    publish("dog")
    loop = next(task for task in http.gateway._loops if task.get_name() == "estimates")
    loop.cancel()
    await asyncio.wait([loop])
    begun = (await send()).json()
    assert (await http.post(f"/estimates/{begun['id']}/cancel")).json()["status"] == "cancelled"
    assert http.gateway.estimates.list_waiting() == []


async def test_version_deleted_meanwhile_fails_it(serve, send, publish, data_root, http):
    import shutil

    publish("dog")
    loop = next(task for task in http.gateway._loops if task.get_name() == "estimates")
    loop.cancel()
    await asyncio.wait([loop])
    begun = (await send()).json()
    shutil.rmtree(data_root / "categories" / "dog")
    found = await ended(await serve(), begun["id"])
    assert found["status"] == "failed"
    assert found["error"]["code"] == "unknown_category"


async def test_failure_of_the_model_is_reported_with_each_picture(http, send, publish, consumer):
    publish("dog")
    consumer.error = ModelFailed("it raised")
    found = await ended(http, (await send()).json()["id"])
    assert found["status"] == "succeeded"
    assert {error["code"] for error in found["result"]["errors"]} == {"model_failed"}


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"category": ""}, 422, "bad_request"),
        ({"category": "cat"}, 404, "unknown_category"),
        ({"refine_steps": "99"}, 422, "bad_request"),
        ({"boxes": "[]"}, 422, "bad_boxes"),
        ({"every": "2"}, 422, "bad_request"),
        ({"landmarks": "none"}, 404, "unknown_landmarks"),
        ({"nonsense": "1"}, 422, "bad_request"),
    ],
)
async def test_bad_request_is_refused_at_once_and_leaves_nothing(
    http, send, publish, problem, no_trace, fields, status, code
):
    publish("dog")
    (http.gateway.settings.data_root / "estimates").mkdir()
    problem(await send(**fields), status, code)
    assert list((http.gateway.settings.data_root / "estimates").iterdir()) == []


async def test_the_preference_may_come_in_a_header_of_its_own(http, send, publish):
    publish("dog")
    answer = await send(headers=[("Prefer", "wait=5"), ("Prefer", "respond-async")])
    assert answer.status_code == 202, answer.text


async def test_body_may_be_longer_in_the_background(serve, send, publish, problem, consumer):
    publish("dog")
    http = await serve(max_body_bytes=1024, max_pending_bytes=1024)
    files = [("images", ("a.png", b"x" * 5000))]
    problem(await send(files, client=http, headers={}), 413, "body_too_large")
    assert (await send(files, client=http)).status_code == 202


async def test_list_has_the_newest_first_in_pages(http, send, publish, consumer, problem):
    publish("dog")
    ids = [(await send()).json()["id"] for _ in range(3)]
    page = (await http.get("/estimates?limit=2")).json()
    assert [item["id"] for item in page["items"]] == ids[:0:-1]
    rest = (await http.get(f"/estimates?limit=2&cursor={page['next_cursor']}")).json()
    assert [item["id"] for item in rest["items"]] == ids[:1]
    assert rest["next_cursor"] is None
    problem(await http.get("/estimates?cursor=x"), 400, "bad_cursor")
    problem(await http.get("/estimates/../x"), 404, "not_found")
    problem(await http.get("/estimates/0123"), 404, "unknown_estimate")


async def test_a_long_one_does_not_hold_up_a_short_one(serve_alone, send, publish, make_consumer, video):
    publish("dog")
    http = await serve_alone(batch_limit=1)
    consumer = await make_consumer()
    reply = consumer._reply

    async def slowly(request) -> None:
        await asyncio.sleep(0.06)  # the frames alone take some seconds, whatever the machine
        await reply(request)

    consumer._reply = slowly
    long = (await send({"video": ("long.mp4", video(60))}, client=http)).json()
    while not consumer.batches:
        await asyncio.sleep(0.02)
    short = (await send(client=http)).json()
    assert (await ended(http, short["id"]))["status"] == "succeeded"
    assert len(consumer.batches) < 60
    assert (await ended(http, long["id"], 60))["progress"]["done"] == 60


async def test_a_repeated_request_finds_its_estimate_at_any_gateway(serve, send, publish, consumer, problem):
    publish("dog")
    other, headers = await serve(), {**RESPOND_ASYNC, "Idempotency-Key": "k"}
    first = await send(headers=headers)
    again = await send(headers=headers, client=other)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    await ended(other, first.json()["id"])
    assert (await send(headers=headers)).json()["status"] == "succeeded"
    problem(await send(headers=headers, refine_steps="1"), 422, "idempotency_key_reused")
    assert len((await other.get("/estimates")).json()["items"]) == 1
    await other.delete(f"/estimates/{first.json()['id']}")
    assert (await send(headers=headers)).json()["id"] != first.json()["id"], "a deleted one is not found"


async def test_old_ones_and_broken_uploads_are_swept(http, send, publish, consumer):
    publish("dog")
    files: EstimateStore = http.gateway.estimates
    begun = (await send()).json()["id"]
    await ended(http, begun)
    left = time_ordered_id(ID_DIGITS)
    files.picture(left, 0).parent.mkdir(parents=True)  # its gateway was killed before the whole upload came
    assert files.sweep(1000.0, 1000.0) == []
    assert sorted(files.sweep(0.0, 0.0)) == sorted([begun, left])
    assert (await http.get(f"/estimates/{begun}")).status_code == 404


async def test_the_oldest_answers_make_room_for_new_ones(http, send, publish, consumer):
    publish("dog")
    files: EstimateStore = http.gateway.estimates
    first = (await send()).json()["id"]
    await ended(http, first)
    size = files.path(first, "result").stat().st_size
    http.gateway.background._settings = http.gateway.settings.model_copy(
        update={"background_results_bytes": size * 5 // 2}
    )
    ids = [first]
    for _ in range(3):
        ids.append((await send()).json()["id"])
        await ended(http, ids[-1])
    for _ in range(100):
        if not files.path(ids[1]).exists():
            break
        await asyncio.sleep(0.02)
    found = [(await http.get(f"/estimates/{estimate_id}")).status_code for estimate_id in ids]
    assert found == [404, 404, 200, 200]
    assert files.trim_results(10) == [ids[2]]  # the newest stays, however large
    assert (await http.get(f"/estimates/{ids[3]}/result")).status_code == 200


async def test_result_made_after_the_clock_was_set_back_is_the_newest(http, send, publish, consumer, monkeypatch):
    publish("dog")
    files: EstimateStore = http.gateway.estimates
    ids = [(await send()).json()["id"] for _ in range(2)]
    for name in ids:
        await ended(http, name)
    set_clock(monkeypatch, -86_400.0, store)
    ids.append((await send()).json()["id"])
    await ended(http, ids[2])
    again = EstimateStore(files.path(ids[0]).parents[1])  # after a restart
    assert set(again.trim_results(files.path(ids[2], "result").stat().st_size + 1)) == set(ids[:2])


async def test_results_and_uploads_outlive_a_clock_that_jumps(http, send, publish, consumer, monkeypatch):
    publish("dog")
    done = (await send()).json()["id"]
    await ended(http, done)
    files: EstimateStore = http.gateway.estimates
    upload = time_ordered_id(ID_DIGITS)
    files.picture(upload, 0).parent.mkdir(parents=True)
    set_clock(monkeypatch, 2 * http.gateway.settings.background_kept_s, store)
    await http.gateway._clean()
    assert (await http.get(f"/estimates/{done}/result")).status_code == 200
    assert files.path(upload).exists()
    monkeypatch.setattr("service.contract.clocks.WAIT_S", 0.0)  # it stays there: it is taken for right
    await http.gateway._clean()
    assert (await http.get(f"/estimates/{done}/result")).status_code == 404
    assert not files.path(upload).exists()


async def test_one_that_lost_its_mark_is_found_again(http, send, publish):
    publish("dog")
    loop = next(task for task in http.gateway._loops if task.get_name() == "estimates")
    loop.cancel()
    await asyncio.wait([loop])
    files: EstimateStore = http.gateway.estimates
    begun = (await send()).json()["id"]
    (files.path(begun).parent / "waiting" / begun).unlink()
    assert files.list_waiting() == []
    files.sweep(1000.0, 1000.0)
    assert files.list_waiting() == [begun]
