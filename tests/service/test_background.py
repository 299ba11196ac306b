"""Estimates in the background, and the frames of videos."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import ExitStack

import pytest

from service.background import AT_ONCE, Turns
from service.background_room import Held, Room, check_room
from service.collecting import WrittenOutcomes
from service.contract.errors import ModelFailed, QueueFull
from service.estimate_files import EstimateFiles, EstimateStatus, new_estimate_id
from service.frames import VideoFrames
from service.keys import KeyStore, Scope

ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def send(http, make_picture):
    async def post(files=None, client=None, headers=ASYNC, **fields: str):
        files = pictures(make_picture) if files is None else files
        return await (client or http).post(
            "/estimate", data={"category": "dog", **fields}, files=files, headers=headers
        )

    return post


@pytest.fixture
def serve_alone(http, serve):
    """Serves the one gateway that works on what waits; that of ``http``, on the same files, leaves it to that one."""
    http.gateway.estimates.waiting = list
    return serve


def pictures(make_picture) -> list:
    return [("images", (f"{n}.png", make_picture())) for n in range(3)]


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


async def test_what_was_begun_is_finished_by_the_next_gateway(serve, publish, make_consumer, make_picture):
    """The first gateway dies with some pictures done; the second does the rest, and only the rest."""
    publish("dog")
    consumer = await make_consumer()
    first = await serve(batch_limit=2)
    consumer.gate.clear()
    # no third gateway must be there to take it up
    sent = await first.post("/estimate", data={"category": "dog"}, files=pictures(make_picture), headers=ASYNC)
    begun = sent.json()
    while not consumer.batches:
        await asyncio.sleep(0.02)
    loop = next(task for task in first.gateway._loops if task.get_name() == "estimates")
    consumer.gate.set()
    files: EstimateFiles = first.gateway.estimates
    while not len(WrittenOutcomes(files.lines(begun["id"]))):
        await asyncio.sleep(0.001)
    consumer.gate.clear()
    loop.cancel()
    await asyncio.wait([loop])
    await first.gateway.background.close()
    done = len(WrittenOutcomes(files.lines(begun["id"])))
    with files.lines(begun["id"]).open("ab") as file:
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
    files: EstimateFiles = http.gateway.estimates
    loop = next(task for task in http.gateway._loops if task.get_name() == "estimates")
    loop.cancel()
    await asyncio.wait([loop])
    others = [(await send(client=http)).json()["id"] for _ in range(AT_ONCE)]
    with ExitStack() as held:
        assert all(held.enter_context(files.working(estimate_id)) for estimate_id in others)
        last = (await send(client=http)).json()["id"]
        await http.gateway.background.round()
        assert (await ended(http, last))["status"] == "succeeded"
        assert {files.record(estimate_id).shown.status for estimate_id in others} == {EstimateStatus.QUEUED}
    await http.gateway.background.round()
    for estimate_id in others:
        assert (await ended(http, estimate_id))["status"] == "succeeded"


async def test_damaged_records_do_not_hold_up_the_others(http, send, publish, consumer, caplog):
    publish("dog")
    files: EstimateFiles = http.gateway.estimates
    damaged = []
    for _ in range(AT_ONCE):
        estimate_id = new_estimate_id()
        files.prepare(estimate_id)
        (files.folder(estimate_id) / "record.json").write_text("{")
        damaged.append(estimate_id)
    last = (await send(client=http)).json()["id"]
    for estimate_id in damaged:
        (files.folder(last).parent / "waiting" / estimate_id).touch()
    assert (await ended(http, last))["status"] == "succeeded"
    after = (await send(client=http)).json()["id"]
    assert (await ended(http, after))["status"] == "succeeded"
    await http.gateway.background.round()
    await asyncio.sleep(0.2)
    await http.gateway.background.round()
    assert sum("can't be worked on" in record.getMessage() for record in caplog.records) == AT_ONCE


async def test_cancelled_right_before_its_end_is_cancelled(http, send, publish, consumer):
    publish("dog")
    files: EstimateFiles = http.gateway.estimates
    consumer.gate.clear()
    begun = (await send(client=http)).json()["id"]
    while not consumer.batches:
        await asyncio.sleep(0.02)
    assert (await http.post(f"/estimates/{begun}/cancel")).status_code == 200
    consumer.gate.set()  # sooner than its gateway looks again
    assert (await ended(http, begun))["status"] == "cancelled"
    assert not files.result(begun).exists()


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
    assert http.gateway.estimates.waiting() == []


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


async def test_fault_of_the_model_is_told_with_each_picture(http, send, publish, consumer):
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


async def test_so_many_may_wait(serve, send, publish, problem):
    publish("dog")
    http = await serve(background_max_waiting=2)
    for _ in range(2):
        assert (await send(client=http)).status_code == 202
    refused = await send(client=http)
    problem(refused, 429, "queue_full")
    assert refused.headers["retry-after"]
    small = await serve(background_max_bytes=1024)
    problem(await send(client=small), 429, "queue_full")


async def test_so_many_of_one_key_may_wait_and_others_have_their_turn(serve_alone, send, publish, problem, consumer):
    publish("dog")
    http = await serve_alone(api_keys=True, background_per_key=2 * AT_ONCE + 1)
    keys = KeyStore(http.gateway.settings.data_root)
    anna, bert = (
        {**ASYNC, "Authorization": f"Bearer {keys.create(name, [Scope.READ])[1]}"} for name in ("anna", "bert")
    )
    consumer.gate.clear()
    sent = [(await send(client=http, headers=anna)).json()["id"] for _ in range(2 * AT_ONCE + 1)]
    found = problem(await send(client=http, headers=anna), 429, "queue_full")
    assert "estimates of the key" in found["detail"]

    async def never():
        yield b"--b\r\n"
        await asyncio.sleep(60)

    headers = {**anna, "Content-Type": "multipart/form-data; boundary=b"}
    refused = await asyncio.wait_for(http.post("/estimate", content=never(), headers=headers), 20)
    problem(refused, 429, "queue_full")  # before the body is read
    late = await send(client=http, headers=bert)
    assert late.status_code == 202
    consumer.gate.set()

    async def began(estimate_id: str, headers: dict) -> str:
        http.headers["Authorization"] = headers["Authorization"]
        return (await ended(http, estimate_id))["started_at"]

    assert await began(late.json()["id"], bert) < await began(sent[-1], anna)


@pytest.mark.parametrize("keys", [1, 2, AT_ONCE, AT_ONCE + 1, AT_ONCE + 4])
def test_a_newcomer_waits_for_one_of_each_key_at_most(keys):
    """However much those before it have sent: each round one ends, the first that began."""
    turns, running = Turns(), {}
    waiting = {f"{n:05}": f"key {n % keys}" for n in range(400 * keys)}
    begun = []
    for step in range(60 * AT_ONCE):
        if step == 20 * AT_ONCE:
            waiting["99999"] = "newcomer"
        if len(running) == AT_ONCE:
            running.pop(next(iter(running)))
        name = turns.next(waiting, running.values())
        running[name] = waiting.pop(name)
        turns.taken(running[name])
        begun.append(running[name])
    assert begun.index("newcomer") - 20 * AT_ONCE <= max(0, keys - AT_ONCE + 1)
    counts = [begun.count(f"key {n}") for n in range(keys)]
    assert max(counts) - min(counts) <= 1


async def test_newcomer_has_its_turn_while_as_many_keys_as_places_have_a_backlog(serve_alone, send, publish, consumer):
    publish("dog")
    http = await serve_alone(api_keys=True)
    store = KeyStore(http.gateway.settings.data_root)
    keys = [{**ASYNC, "Authorization": f"Bearer {store.create(f'k{n}', [Scope.READ])[1]}"} for n in range(AT_ONCE + 1)]
    consumer.gate.clear()
    sent = [(await send(client=http, headers=key)).json()["id"] for _ in range(4) for key in keys[:-1]]
    late = (await send(client=http, headers=keys[-1])).json()["id"]
    consumer.gate.set()
    http.headers["Authorization"] = keys[0]["Authorization"]
    began = (await ended(http, late, 60))["started_at"]
    assert sum([(await ended(http, name, 60))["started_at"] < began for name in sent]) <= 2 * AT_ONCE


async def test_sent_at_once_no_more_get_in_than_may_wait(serve, send, publish, consumer):
    publish("dog")
    http = await serve(api_keys=True, background_per_key=3, background_max_waiting=5)
    store = KeyStore(http.gateway.settings.data_root)
    anna, bert = ({**ASYNC, "Authorization": f"Bearer {store.create(n, [Scope.READ])[1]}"} for n in ("anna", "bert"))
    consumer.gate.clear()
    answers = await asyncio.gather(*(send(client=http, headers=anna) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 9
    answers = await asyncio.gather(*(send(client=http, headers=bert) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [202] * 2 + [429] * 10
    consumer.gate.set()


def test_room_is_that_of_all_and_that_of_each_key():
    room = Room(in_all=4, of_owner=2, size_bytes=100, owner_bytes=60)

    def refused(waiting: list[Held], ahead: list[Held], one: Held, coming: int = 0) -> str:
        try:
            check_room(room, waiting, ahead, one, coming)
        except QueueFull as error:
            return error.detail
        return ""

    anna, bert, nobody = (Held(owner, 30) for owner in ("anna", "bert", None))
    assert not refused([anna], [], Held("anna", 30))
    assert "2 estimates of the key anna" in refused([anna], [anna], Held("anna"))
    assert "estimates of the key anna that wait or are being sent have 30" in refused([anna], [], Held("anna", 20), 11)
    assert "of estimates that wait or are being sent have 90" in refused([anna, bert], [nobody], Held("anna", 5), 6)
    assert not refused([anna, bert, nobody], [], Held(None, 10))
    assert not refused([nobody, nobody], [nobody], Held(None, 10)), "without keys there is no bound of a key"
    assert "4 estimates wait in the background or are being sent" in refused([nobody], [Held(None)] * 3, Held(None))
    assert "4 estimates wait" in refused([nobody] * 4, [], Held(None))


async def came(client, size: int) -> None:
    async with asyncio.timeout(20):
        while client.gateway.arriving.size_bytes < size:
            await asyncio.sleep(0.02)


async def test_what_came_of_others_counts_and_not_what_they_announce(
    serve, send, publish, problem, make_picture, monkeypatch
):
    monkeypatch.setattr("service.forms._FLUSH_BYTES", 1)
    publish("dog")
    http = await serve(background_max_bytes=100_000)
    headers = {**ASYNC, "Content-Type": "multipart/form-data; boundary=b", "Content-Length": "90000"}
    more = asyncio.Event()

    async def slowly(size: int):
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + bytes(size)
        await more.wait()

    announced = [asyncio.create_task(http.post("/estimate", content=slowly(10), headers=headers)) for _ in range(5)]
    await came(http, 5)
    assert (await send([("images", ("a.png", make_picture()))], client=http)).status_code == 202
    sending = asyncio.create_task(http.post("/estimate", content=slowly(89_000), headers=headers))
    await came(http, 89_000)
    refused = await send([("images", ("a.png", b"x" * 20_000))], client=http)
    problem(refused, 429, "queue_full")
    assert refused.headers["retry-after"]
    more.set()
    for one in (sending, *announced):
        problem(await one, 400, "bad_request")
    assert http.gateway.arriving.size_bytes == 0
    assert (await send([("images", ("a.png", b"x" * 20_000))], client=http)).status_code == 202


async def test_later_one_gives_way_as_it_grows(serve, publish, problem, consumer, monkeypatch):
    """Of two that together are too long the first goes on, though neither says how long it is."""
    consumer.gate.clear()
    monkeypatch.setattr("service.estimate_request._LOOK_BYTES", 1000)
    monkeypatch.setattr("service.forms._FLUSH_BYTES", 1)
    publish("dog")
    http = await serve(background_max_bytes=100_000)
    headers = {**ASYNC, "Content-Type": "multipart/form-data; boundary=b"}
    steps: dict[str, asyncio.Event] = {}

    def form(data: bytes) -> bytes:
        head = b'--b\r\nContent-Disposition: form-data; name="category"\r\n\r\ndog\r\n--b\r\n'
        return head + b'Content-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + data

    async def body(name: str):
        yield form(bytes(45_000))
        await steps[name].wait()
        yield bytes(20_000)
        await steps[name + " ends"].wait()
        yield b"\r\n--b--\r\n"

    sending = {}
    for number, name in enumerate(("first", "second", "third"), start=1):
        steps |= {name: asyncio.Event(), name + " ends": asyncio.Event()}
        sending[name] = asyncio.create_task(http.post("/estimate", content=body(name), headers=headers))
        if name == "third":  # there is no room for what it begins with
            problem(await asyncio.wait_for(sending[name], 20), 429, "queue_full")
        else:
            await came(http, 45_000 * number)
    for event in ("first", "first ends"):  # while the second is still being sent
        steps[event].set()
    assert (await asyncio.wait_for(sending["first"], 20)).status_code == 202
    steps["second"].set()
    problem(await asyncio.wait_for(sending["second"], 20), 429, "queue_full")  # its end never came


async def test_room_that_came_meanwhile_is_seen(serve, send, publish, consumer, monkeypatch):
    """What waited when an upload began has been cancelled since."""
    consumer.gate.clear()
    monkeypatch.setattr("service.forms._FLUSH_BYTES", 1)
    publish("dog")
    http = await serve(background_max_bytes=100_000)
    waiting = (await send([("images", ("a.png", bytes(60_000)))], client=http)).json()["id"]
    more = asyncio.Event()

    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="category"\r\n\r\ndog\r\n--b\r\n'
        yield b'Content-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + bytes(30_000)
        await more.wait()
        yield bytes(40_000) + b"\r\n--b--\r\n"

    headers = {**ASYNC, "Content-Type": "multipart/form-data; boundary=b"}
    sending = asyncio.create_task(http.post("/estimate", content=body(), headers=headers))
    await came(http, 30_000)
    await http.post(f"/estimates/{waiting}/cancel")
    consumer.gate.set()
    await ended(http, waiting)
    more.set()
    assert (await asyncio.wait_for(sending, 20)).status_code == 202


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


async def test_old_ones_and_broken_uploads_are_swept(http, send, publish, consumer):
    publish("dog")
    files: EstimateFiles = http.gateway.estimates
    begun = (await send()).json()["id"]
    await ended(http, begun)
    left = new_estimate_id()
    files.prepare(left)  # its gateway was killed before the whole upload came
    assert files.sweep(1000.0, 1000.0) == []
    assert sorted(files.sweep(0.0, 0.0)) == sorted([begun, left])
    assert (await http.get(f"/estimates/{begun}")).status_code == 404


async def test_the_oldest_answers_make_room_for_new_ones(http, send, publish, consumer):
    publish("dog")
    files: EstimateFiles = http.gateway.estimates
    first = (await send()).json()["id"]
    await ended(http, first)
    size = files.result(first).stat().st_size
    http.gateway.background._gateway.settings = http.gateway.settings.model_copy(
        update={"background_results_bytes": size * 5 // 2}
    )
    ids = [first]
    for _ in range(3):
        ids.append((await send()).json()["id"])
        await ended(http, ids[-1])
    for _ in range(100):
        if not files.folder(ids[1]).exists():
            break
        await asyncio.sleep(0.02)
    found = [(await http.get(f"/estimates/{estimate_id}")).status_code for estimate_id in ids]
    assert found == [404, 404, 200, 200]
    assert files.make_room(10) == [ids[2]]  # the newest stays, however large
    assert (await http.get(f"/estimates/{ids[3]}/result")).status_code == 200


async def test_one_that_lost_its_mark_is_found_again(http, send, publish):
    publish("dog")
    loop = next(task for task in http.gateway._loops if task.get_name() == "estimates")
    loop.cancel()
    await asyncio.wait([loop])
    files: EstimateFiles = http.gateway.estimates
    begun = (await send()).json()["id"]
    (files.folder(begun).parent / "waiting" / begun).unlink()
    assert files.waiting() == []
    files.sweep(1000.0, 1000.0)
    assert files.waiting() == [begun]


# videos


@pytest.fixture
def film(video):
    """24 frames at 25 a second; a red square in the corner is the brightest spot of the first ones."""
    return {"video": ("walk.mp4", video(24))}


async def test_poses_of_a_videos_frames(http, send, publish, consumer, film):
    version = publish("dog")
    answer = await send(film, headers={}, every="5")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["version"] == version
    assert [image["frame"] for image in found["images"]] == [0, 5, 10, 15, 20]
    assert [image["index"] for image in found["images"]] == [0, 1, 2, 3, 4]
    assert [image["time_s"] for image in found["images"]] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert {(image["width"], image["height"]) for image in found["images"]} == {(48, 32)}
    assert found["errors"] == []
    assert len((await send(film, headers={})).json()["images"]) == 24


async def test_frames_come_line_by_line(http, send, publish, consumer, film):
    publish("dog")
    answer = await send(film, headers={"Accept": "application/jsonl"}, every="6")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(line["frame"] for line in lines[:-1]) == [0, 6, 12, 18]
    assert lines[-1]["summary"]["pictures"] == 4


async def test_table_names_the_frames(http, send, publish, consumer, film):
    publish("dog")
    rows = (await send(film, headers={}, every="10", format="csv")).text.splitlines()
    assert [row.split(",")[0] for row in rows[-3:]] == ["walk.mp4#000000", "walk.mp4#000010", "walk.mp4#000020"]
    coco = (await send(film, headers={}, every="10", format="coco")).json()
    assert [image["file_name"] for image in coco["images"]] == [f"walk.mp4#0000{n}" for n in ("00", "10", "20")]


async def test_a_box_holds_for_every_frame(http, send, publish, consumer, film):
    publish("dog")
    found = (await send(film, headers={}, every="12", boxes="[[[0, 0, 20, 20], [10, 5, 20, 20]]]")).json()
    assert [(image["frame"], image["box"]) for image in found["images"]] == [(0, 0), (0, 1), (12, 0), (12, 1)]
    outside = (await send(film, headers={}, every="12", boxes="[[400, 0, 20, 20]]")).json()
    assert [error["code"] for error in outside["errors"]] == ["bad_boxes"] * 2
    assert "walk.mp4#000012" in outside["errors"][1]["detail"]


async def test_damaged_rest_is_told_after_the_frames_before_it(http, send, publish, consumer, video):
    publish("dog")
    whole = video(60, kind="mkv")
    cut = whole[: len(whole) * 2 // 3]
    found = (await send({"video": ("cut.mkv", cut)}, headers={}, every="10")).json()
    assert found["images"]
    (error,) = found["errors"]
    assert error["code"] == "bad_video"
    assert error["index"] == len(found["images"])


@pytest.mark.parametrize("accept", [{}, {"Accept": "application/jsonl"}])
async def test_what_is_no_video_is_refused(http, send, publish, consumer, problem, accept, data_root):
    publish("dog")
    problem(await send({"video": ("a.mp4", b"junk" * 100)}, headers=accept), 422, "bad_video")
    assert list((data_root / "estimates").glob("[0-9a-f]*")) == []


async def test_too_many_frames_are_refused_with_what_to_do(serve, send, publish, consumer, problem, film):
    publish("dog")
    http = await serve(max_streamed_images=10)
    document = problem(await send(film, client=http, headers={}), 422, "bad_video")
    assert "24 frames" in document["detail"]
    assert (await send(film, client=http, headers={}, every="3")).status_code == 200


async def test_each_box_of_each_frame_counts(serve, http, send, publish, consumer, problem, film):
    """Else a short video with many boxes would have an answer of gigabytes."""
    publish("dog")
    small = await serve(max_streamed_images=40)
    boxes = {"boxes": "[[[0, 0, 20, 20], [10, 5, 20, 20]]]"}
    assert "at most 20" in problem(await send(film, client=small, headers={}, **boxes), 422, "bad_video")["detail"]
    assert len((await send(film, client=small, headers={}, every="2", **boxes)).json()["images"]) == 24


async def test_each_box_of_each_frame_counts_in_the_background(http, send, publish, consumer, film):
    publish("dog")
    http.gateway.background._gateway.settings = http.gateway.settings.model_copy(update={"background_max_images": 40})
    found = await ended(http, (await send(film, boxes="[[[0, 0, 20, 20], [10, 5, 20, 20]]]")).json()["id"])
    assert found["error"]["code"] == "bad_video"
    assert "at most 20" in found["error"]["detail"]


async def test_without_a_worker_a_video_gets_503(serve, send, publish, problem, film):
    publish("dog")
    http = await serve(estimate_timeout_s=0.3)
    problem(await send(film, client=http, headers={}), 503, "worker_unavailable")


@pytest.mark.parametrize(
    "fields",
    [{"include": "overlay"}, {"include": "link_map"}, {"every": "0"}, {"every": "x"}, {"boxes": "[null, null]"}],
)
async def test_what_a_video_can_not_have_is_refused(send, publish, problem, film, fields):
    publish("dog")
    response = await send(film, headers={}, **fields)
    assert response.status_code == 422, response.text
    problem(response, 422, response.json()["code"])


async def test_pictures_and_a_video_are_refused_together(send, publish, problem, film, make_picture):
    publish("dog")
    files = [("images", ("a.png", make_picture())), *film.items()]
    assert "either" in problem(await send(files, headers={}), 422, "bad_request")["detail"]


async def test_a_video_in_the_background_goes_on_where_it_was(serve, http, send, publish, consumer, film):
    publish("dog")
    begun = (await send(film, every="4")).json()
    assert begun["progress"]["total"] is None
    found = await ended(http, begun["id"])
    assert [image["frame"] for image in found["result"]["images"]] == [0, 4, 8, 12, 16, 20]
    assert found["progress"] == {"done": 6, "failed": 0, "total": 6}


async def test_a_client_that_leaves_ends_the_decoding(http, send, publish, consumer, video, data_root):
    publish("dog")
    consumer.gate.clear()
    work = asyncio.create_task(send({"video": ("a.mp4", video(200))}, headers={}))
    while not consumer.batches:
        await asyncio.sleep(0.02)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    for _ in range(200):
        if not list((data_root / "estimates").glob("[0-9a-f]*")):
            break
        await asyncio.sleep(0.05)
    assert list((data_root / "estimates").glob("[0-9a-f]*")) == []
    consumer.gate.set()


async def test_so_many_videos_are_decoded_at_once(serve, send, publish, consumer, problem, film, video, make_picture):
    publish("dog")
    http = await serve(max_videos=2)
    consumer.gate.clear()
    slow = [
        asyncio.create_task(send({"video": ("a.mp4", video(200))}, client=http, headers=headers))
        for headers in ({}, {"Accept": "application/jsonl"})
    ]
    while http.gateway.video_places.taken < 2:
        await asyncio.sleep(0.02)
    refused = await send(film, client=http, headers={})
    assert "2 videos" in problem(refused, 429, "queue_full")["detail"]
    assert refused.headers["retry-after"]
    begun = (await send(film, client=http, every="12")).json()  # has a place of its own
    consumer.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200, 200]
    assert (await ended(http, begun["id"]))["status"] == "succeeded"
    assert http.gateway.video_places.taken == 0
    assert (await send(film, client=http, headers={}, every="12")).status_code == 200


async def test_videos_that_are_slow_to_decode_do_not_hold_up_uploads(http, send, publish, consumer, video, monkeypatch):
    """Of a long video of which each 100,000th frame is wanted, the decoder says nothing for minutes."""
    held = threading.Event()
    real = VideoFrames._read

    def slow(self):
        held.wait(30)
        return real(self)

    publish("dog")
    monkeypatch.setattr(VideoFrames, "_read", slow)
    begun = [(await send({"video": ("a.mp4", video(8))}, client=http)).json()["id"] for _ in range(AT_ONCE)]
    try:
        while len(http.gateway.background._running) < AT_ONCE:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert (await asyncio.wait_for(send(client=http), 5)).status_code == 202
    finally:
        held.set()
    for estimate_id in begun:
        assert (await ended(http, estimate_id))["status"] == "succeeded"
