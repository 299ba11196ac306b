"""How many estimates may wait in the background, and whose turn it is."""

from __future__ import annotations

import asyncio

import pytest

from service.access.keys import KeyStore, Scope
from service.contract.errors import QueueFull
from service.contract.quotas import EstimateLimits, PendingEstimate, check_estimate_limits
from service.estimates.background.runner import AT_ONCE, FairTurns
from service.estimates.request import UploadedFiles
from service.estimates.store import EstimateStore
from service.http.multipart import Part
from tests.service.conftest import RESPOND_ASYNC

from .test_background import ended


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
        {**RESPOND_ASYNC, "Authorization": f"Bearer {keys.create(name, [Scope.READ])[1]}"} for name in ("anna", "bert")
    )
    consumer.gate.clear()
    sent = [(await send(client=http, headers=anna)).json()["id"] for _ in range(2 * AT_ONCE + 1)]
    found = problem(await send(client=http, headers=anna), 429, "queue_full")
    assert "estimates of API key" in found["detail"]

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
    turns, running = FairTurns(), {}
    waiting = {f"{n:05}": f"key {n % keys}" for n in range(400 * keys)}
    begun = []
    for step in range(60 * AT_ONCE):
        if step == 20 * AT_ONCE:
            waiting["99999"] = "newcomer"
        if len(running) == AT_ONCE:
            running.pop(next(iter(running)))
        name = turns.choose(waiting, running.values())
        running[name] = waiting.pop(name)
        turns.record(running[name])
        begun.append(running[name])
    assert begun.index("newcomer") - 20 * AT_ONCE <= max(0, keys - AT_ONCE + 1)
    counts = [begun.count(f"key {n}") for n in range(keys)]
    assert max(counts) - min(counts) <= 1


async def test_newcomer_has_its_turn_while_as_many_keys_as_places_have_a_backlog(serve_alone, send, publish, consumer):
    publish("dog")
    http = await serve_alone(api_keys=True)
    store = KeyStore(http.gateway.settings.data_root)
    keys = [
        {**RESPOND_ASYNC, "Authorization": f"Bearer {store.create(f'k{n}', [Scope.READ])[1]}"}
        for n in range(AT_ONCE + 1)
    ]
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
    anna, bert = (
        {**RESPOND_ASYNC, "Authorization": f"Bearer {store.create(n, [Scope.READ])[1]}"} for n in ("anna", "bert")
    )
    consumer.gate.clear()
    answers = await asyncio.gather(*(send(client=http, headers=anna) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 9
    answers = await asyncio.gather(*(send(client=http, headers=bert) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [202] * 2 + [429] * 10
    consumer.gate.set()


def test_room_is_that_of_all_and_that_of_each_key():
    limits = EstimateLimits(total=4, per_owner=2, total_bytes=100, owner_bytes=60)

    def refused(
        waiting: list[PendingEstimate], ahead: list[PendingEstimate], one: PendingEstimate, coming: int = 0
    ) -> str:
        try:
            check_estimate_limits(limits, waiting, ahead, one, coming)
        except QueueFull as error:
            return error.detail
        return ""

    anna, bert, anonymous = (PendingEstimate(owner, 30) for owner in ("anna", "bert", None))
    assert not refused([anna], [], PendingEstimate("anna", 30))
    assert "2 estimates of API key anna" in refused([anna], [anna], PendingEstimate("anna"))
    assert "estimates of API key anna that wait or are being uploaded have 30" in refused(
        [anna], [], PendingEstimate("anna", 20), 11
    )
    assert "of estimates that wait or are being uploaded have 90" in refused(
        [anna, bert], [anonymous], PendingEstimate("anna", 5), 6
    )
    assert not refused([anna, bert, anonymous], [], PendingEstimate(None, 10))
    assert not refused([anonymous, anonymous], [anonymous], PendingEstimate(None, 10)), (
        "without keys there is no bound of a key"
    )
    assert "4 estimates wait in the background or are being uploaded" in refused(
        [anonymous], [PendingEstimate(None)] * 3, PendingEstimate(None)
    )
    assert "4 estimates wait" in refused([anonymous] * 4, [], PendingEstimate(None))


def received(client) -> int:
    return sum(upload.size_bytes for upload in client.gateway.arrivals._uploads)


async def came(client, size: int) -> None:
    async with asyncio.timeout(20):
        while received(client) < size:
            await asyncio.sleep(0.02)


async def test_what_came_of_others_counts_and_not_what_they_announce(
    serve, send, publish, problem, make_picture, monkeypatch
):
    monkeypatch.setattr("service.http.multipart._FLUSH_BYTES", 1)
    publish("dog")
    http = await serve(background_max_bytes=100_000)
    headers = {**RESPOND_ASYNC, "Content-Type": "multipart/form-data; boundary=b", "Content-Length": "90000"}
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
    assert received(http) == 0
    assert (await send([("images", ("a.png", b"x" * 20_000))], client=http)).status_code == 202


async def test_later_one_gives_way_as_it_grows(serve, publish, problem, consumer, monkeypatch):
    """Of two that together are too long the first goes on, though neither says how long it is."""
    consumer.gate.clear()
    monkeypatch.setattr("service.estimates.background.arrivals._RECOUNT_BYTES", 1000)
    monkeypatch.setattr("service.http.multipart._FLUSH_BYTES", 1)
    publish("dog")
    http = await serve(background_max_bytes=100_000)
    headers = {**RESPOND_ASYNC, "Content-Type": "multipart/form-data; boundary=b"}
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
    monkeypatch.setattr("service.http.multipart._FLUSH_BYTES", 1)
    publish("dog")
    http = await serve(background_max_bytes=100_000)
    waiting = (await send([("images", ("a.png", bytes(60_000)))], client=http)).json()["id"]
    more = asyncio.Event()

    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="category"\r\n\r\ndog\r\n--b\r\n'
        yield b'Content-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + bytes(30_000)
        await more.wait()
        yield bytes(40_000) + b"\r\n--b--\r\n"

    headers = {**RESPOND_ASYNC, "Content-Type": "multipart/form-data; boundary=b"}
    sending = asyncio.create_task(http.post("/estimate", content=body(), headers=headers))
    await came(http, 30_000)
    await http.post(f"/estimates/{waiting}/cancel")
    consumer.gate.set()
    await ended(http, waiting)
    more.set()
    assert (await asyncio.wait_for(sending, 20)).status_code == 202


async def test_write_that_goes_on_after_its_request_leaves_no_files(tmp_path):
    files = UploadedFiles(EstimateStore(tmp_path), asyncio.to_thread, max_picture_bytes=100)
    write = files.sink_of(Part("a.jpg", name="images"))
    await write(b"1")
    await files.aclose()
    with pytest.raises(FileNotFoundError):
        await write(b"2")
    assert list((tmp_path / "estimates").iterdir()) == []
