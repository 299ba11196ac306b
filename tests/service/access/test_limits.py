"""Requests a second, and jobs that have not ended."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from service.access.guard import RequestRate
from service.access.keys import KeyStore, Scope
from service.contract.errors import QueueFull, RateExceeded, TooManyJobs
from service.contract.jobs.job import JobStatus
from service.contract.jobs.store import JobStore, NamedRequest, NewJob
from service.contract.quotas import JobLimits
from service.gateway.gateway import clean_every_s
from service.http.multipart import UploadFile
from tests.service.training.test_train_jobs import GOOD


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_seconds_worth_at_once_then_one_at_a_time():
    clock = Clock()
    rate = RequestRate(4, clock)
    for _ in range(4):
        rate.take("a")
    with pytest.raises(RateExceeded, match="more than 4 requests a second") as refused:
        rate.take("a")
    assert refused.value.retry_after_s == pytest.approx(0.25)
    rate.take("b")
    clock.now += 0.25
    rate.take("a")
    with pytest.raises(RateExceeded):
        rate.take("a")
    clock.now += 1000
    for _ in range(4):
        rate.take("a")
    with pytest.raises(RateExceeded):
        rate.take("a")


def test_less_than_one_a_second():
    clock = Clock()
    rate = RequestRate(0.5, clock)
    rate.take("a")
    with pytest.raises(RateExceeded) as refused:
        rate.take("a")
    assert refused.value.retry_after_s == pytest.approx(2.0)


def test_no_limit_counts_nothing():
    rate = RequestRate(0)
    for _ in range(10_000):
        rate.take("a")


def test_callers_of_long_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr("service.access.guard._MAX_CALLERS", 10)
    clock = Clock()
    rate = RequestRate(1, clock)
    for number in range(50):
        clock.now += 0.5
        rate.take(str(number))
    assert len(rate._full_at) <= 10


async def test_a_key_that_asks_too_often_gets_429(serve, data_root, problem):
    http = await serve(api_keys=True, requests_per_s=2)
    store = KeyStore(data_root)
    one, two = ({"Authorization": f"Bearer {store.create(name, [Scope.READ])[1]}"} for name in "ab")
    answers = [await http.get("/priors", headers=one) for _ in range(10)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    refused = next(answer for answer in answers if answer.status_code != 200)
    problem(refused, 429, "rate_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await http.get("/priors", headers=two)).status_code == 200
    for _ in range(10):  # what watches the service is not counted
        assert (await http.get("/livez")).status_code == 200


async def test_guesses_of_keys_are_limited_without_slowing_valid_keys(serve, data_root, problem):
    http = await serve(api_keys=True, requests_per_s=2)
    good = {"Authorization": f"Bearer {KeyStore(data_root).create('a', [Scope.READ])[1]}"}
    tried = [await http.get("/priors", headers={"Authorization": f"Bearer ppl_{n:012x}_x"}) for n in range(10)]
    assert [answer.status_code for answer in tried[:2]] == [401, 401]
    problem(tried[-1], 429, "rate_exceeded")
    assert (await http.get("/priors", headers=good)).status_code == 200


async def test_a_caller_has_one_rate_at_all_gateways(serve, problem):
    one, two = await serve(requests_per_s=2), await serve(requests_per_s=2)
    answers = [await http.get("/priors") for http in (one, two, one, two)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    problem(answers[2], 429, "rate_exceeded")
    problem(answers[3], 429, "rate_exceeded")


async def test_each_gateway_limits_while_redis_is_away(serve, problem):
    http = await serve(requests_per_s=2, redis_url="redis://127.0.0.1:1/0")
    answers = [await http.get("/priors") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


LIMITS = JobLimits(total=3, per_owner=2)


def test_so_many_jobs_may_not_have_ended(redis_client):
    jobs = JobStore(redis_client)
    first = jobs.create(NewJob("dog", {}, 5, owner="a"), limits=LIMITS)
    jobs.create(NewJob("dog", {}, 5, owner="a"), limits=LIMITS)
    with pytest.raises(TooManyJobs, match="API key a has 2 unfinished jobs"):
        jobs.create(NewJob("dog", {}, 5, owner="a"), limits=LIMITS)
    with pytest.raises(TooManyJobs):
        jobs.check_room("a", LIMITS)
    jobs.check_room("b", LIMITS)
    jobs.create(NewJob("dog", {}, 5), limits=LIMITS)
    with pytest.raises(QueueFull, match="3 jobs are unfinished"):
        jobs.create(NewJob("dog", {}, 5, owner="b"), limits=LIMITS)
    with pytest.raises(QueueFull):
        jobs.check_room(None, LIMITS)
    assert len(jobs.page().items) == 3
    jobs.update(first.id, lambda record: record.move(JobStatus.FAILED))
    assert jobs.create(NewJob("dog", {}, 5, owner="a"), limits=LIMITS).created_by == "a"


def test_request_that_was_served_before_is_answered_while_all_is_full(redis_client):
    jobs = JobStore(redis_client)
    named = NamedRequest("n", "f", 100)
    one = JobLimits(1, 1)
    made = jobs.create(NewJob("dog", {}, 5), request=named, limits=one)
    assert jobs.create(NewJob("dog", {}, 5), request=named, limits=one).id == made.id
    with pytest.raises(QueueFull):
        jobs.create(NewJob("dog", {}, 5), request=NamedRequest("other", "f", 100), limits=one)
    # the refused one's name is free
    jobs.update(made.id, lambda record: record.move(JobStatus.FAILED))
    assert jobs.create(NewJob("dog", {}, 5), request=NamedRequest("other", "g", 100), limits=one).id != made.id


async def test_jobs_beyond_the_limit_get_429_and_leave_nothing(serve, problem, no_trace, data_root):
    from tests.service.training.test_train_jobs import GOOD

    http = await serve(max_unfinished_jobs=1)
    send = {"data": {"category": "dog"}, "files": {"archive": ("a.zip", GOOD)}}
    assert (await http.post("/train-jobs", **send)).status_code == 202
    before = sorted(path.name for path in (data_root / "jobs").iterdir())
    for headers in ({}, {"Idempotency-Key": "k"}):
        refused = await http.post("/train-jobs", **send, headers=headers)
        problem(refused, 429, "queue_full")
        assert refused.headers["retry-after"]
    assert sorted(path.name for path in (data_root / "jobs").iterdir()) == before


def dripping(data: bytes, parts: int, pause_s: float):
    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="category"\r\n\r\ndog\r\n'
        yield b'--b\r\nContent-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n'
        step = -(-len(data) // parts)
        for start in range(0, len(data), step):
            await asyncio.sleep(pause_s)
            yield data[start : start + step]
        yield b"\r\n--b--\r\n"

    return {"content": body(), "headers": {"content-type": "multipart/form-data; boundary=b"}}


async def test_upload_that_drips_is_refused_and_leaves_nothing(serve, problem, monkeypatch, no_trace):
    """Each of its pauses is short; all of it would take for ever."""
    monkeypatch.setattr("service.http.requests.STALL_S", 1.0)
    http = await serve(slowest_body_bytes_per_s=1_000_000)
    found = problem(await http.post("/train-jobs", **dripping(GOOD, 40, 0.05)), 408, "bad_request")
    assert "1000000 bytes a second" in found["detail"]
    assert http.gateway.jobs.page().items == []
    no_trace()


async def test_fast_beginning_buys_no_slow_end(serve, problem, monkeypatch, no_trace):
    monkeypatch.setattr("service.http.requests.STALL_S", 1.0)
    http = await serve(slowest_body_bytes_per_s=1000)

    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n' + bytes(10**6)
        for _ in range(100):
            await asyncio.sleep(0.1)
            yield b"."

    begun = asyncio.get_running_loop().time()
    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await http.post("/train-jobs", content=body(), headers=headers), 408, "bad_request")
    assert asyncio.get_running_loop().time() - begun < 8
    no_trace()


async def test_what_the_server_takes_to_put_it_away_does_not_count(serve, monkeypatch):
    monkeypatch.setattr("service.http.requests.STALL_S", 3.0)
    monkeypatch.setattr("service.http.multipart._FLUSH_BYTES", 1)
    write = UploadFile.write

    async def slowly(self, data: bytes) -> None:
        await asyncio.sleep(0.4)
        await write(self, data)

    monkeypatch.setattr(UploadFile, "write", slowly)
    http = await serve(slowest_body_bytes_per_s=10**6)
    assert (await http.post("/train-jobs", **dripping(GOOD, 10, 0.1))).status_code == 202


async def test_pause_is_reported_as_paused(serve, problem, monkeypatch):
    monkeypatch.setattr("service.http.requests.STALL_S", 2.0)
    http = await serve(slowest_body_bytes_per_s=100)
    found = problem(await http.post("/train-jobs", **dripping(GOOD, 1, 6)), 408, "bad_request")
    assert "nothing of the body came" in found["detail"]


@pytest.mark.parametrize("path", ["/priors/dog/aliases/best", "/priors/dog/keypoint-names"])
async def test_slow_or_long_json_gets_its_own_error(serve, publish, problem, monkeypatch, path):
    """The framework reads these bodies, and would call it a body that can't be parsed."""
    monkeypatch.setattr("service.http.requests.STALL_S", 1.0)
    publish("dog")
    http = await serve(max_body_bytes=2000)

    async def slow():
        yield b"{"
        await asyncio.sleep(5)

    async def long():
        for _ in range(10):
            yield b" " * 500

    headers = {"content-type": "application/json"}
    late = await http.put(path, content=slow(), headers=headers)
    problem(late, 408, "bad_request")
    assert late.headers["connection"] == "close"
    problem(await http.put(path, content=long(), headers=headers), 413, "body_too_large")


async def test_upload_that_comes_fast_enough_may_take_longer_than_the_first_seconds(serve, monkeypatch):
    monkeypatch.setattr("service.http.requests.STALL_S", 2.0)
    for slowest in (len(GOOD) / 6, 0):  # all of it in six seconds, or in any time
        http = await serve(slowest_body_bytes_per_s=slowest)
        assert (await http.post("/train-jobs", **dripping(GOOD, 15, 0.2))).status_code == 202


async def test_records_of_ended_jobs_beyond_those_kept_are_removed(serve, redis_client):
    http = await serve(ended_jobs_kept=2, idempotency_ttl_s=3)
    jobs = http.gateway.jobs
    made = [jobs.create(NewJob("dog", {}, 5)).id for _ in range(4)]
    for job_id in made[:3]:
        jobs.update(job_id, lambda record: record.move(JobStatus.FAILED))
    await http.gateway._clean()
    assert len((await http.get("/train-jobs")).json()["items"]) == 4, "one that has just ended stays"
    await asyncio.sleep(3.1)
    await http.gateway._clean()
    listed = (await http.get("/train-jobs")).json()["items"]
    assert [job["id"] for job in listed] == [made[3], made[2], made[1]]
    assert (await http.get(f"/train-jobs/{made[0]}")).status_code == 404


@pytest.mark.parametrize(
    ("kept", "every_s"),
    [({}, 600), ({"background_kept_s": 60.0}, 30), ({"stale_upload_s": 10.0}, 5), ({"idempotency_ttl_s": 1}, 1)],
)
def test_what_expires_is_looked_for_twice_in_the_shortest_retention(make_settings, kept, every_s):
    assert clean_every_s(make_settings(**kept)) == every_s


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "new"}], ids=["unnamed", "named"])
async def test_no_body_is_read_of_a_job_beyond_the_limit(serve, problem, headers):
    http = await serve(max_unfinished_jobs=1)
    sent = {"data": {"category": "dog"}, "files": {"archive": ("a.zip", GOOD)}}
    assert (await http.post("/train-jobs", **sent, headers={"Idempotency-Key": "old"})).status_code == 202

    async def never():
        yield b"--b\r\n"
        await asyncio.sleep(60)

    form = {"content-type": "multipart/form-data; boundary=b"}
    refused = await asyncio.wait_for(http.post("/train-jobs", content=never(), headers={**form, **headers}), 20)
    problem(refused, 429, "queue_full")
    again = await http.post("/train-jobs", **sent, headers={"Idempotency-Key": "old"})
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")


async def test_same_request_twice_at_once_for_the_last_place(serve, monkeypatch):
    http = await serve(max_unfinished_jobs=1)
    look, made, calls = http.gateway.jobs.check_room, threading.Event(), itertools.count()

    def check_room(*arguments):
        if next(calls):
            assert made.wait(20), "the first one was not served"
        look(*arguments)

    monkeypatch.setattr(http.gateway.jobs, "check_room", check_room)
    sent = {"data": {"category": "dog"}, "files": {"archive": ("a.zip", GOOD)}, "headers": {"Idempotency-Key": "k"}}
    both = [asyncio.create_task(http.post("/train-jobs", **sent)) for _ in range(2)]
    done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    assert {answer.result().status_code for answer in done} == {202}
    made.set()
    answers = await asyncio.gather(*both)
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
async def test_keys_tried_at_what_watches_the_service_are_counted_as_well(serve, problem, path, monkeypatch):
    monkeypatch.setattr("service.access.guard._is_loopback", lambda name: False)
    http = await serve(api_keys=True, requests_per_s=2, open_metrics=False, open_health=False)
    tried = [await http.get(path, headers={"Authorization": f"Bearer ppl_{n:012x}_x"}) for n in range(10)]
    assert tried[0].status_code == 401
    problem(tried[-1], 429, "rate_exceeded")


async def test_requests_beyond_the_scope_of_a_key_count(serve, data_root, problem):
    http = await serve(api_keys=True, requests_per_s=2)
    reader = {"Authorization": f"Bearer {KeyStore(data_root).create('a', [Scope.READ])[1]}"}
    answers = [await http.post("/train-jobs", headers=reader) for _ in range(10)]
    problem(answers[0], 403, "forbidden")
    problem(answers[-1], 429, "rate_exceeded")


async def test_one_key_leaves_the_others_a_part_of_what_requests_hold_together(serve, data_root, problem):
    """Slow bodies of great declared length took all memory that requests may hold, for as long as they dripped."""
    http, store = await serve(api_keys=True, max_pending_bytes=100_000, max_body_bytes=50_000), KeyStore(data_root)
    (one, first), (_, second) = (store.create(name, [Scope.READ]) for name in "ab")

    async def send(text: str):
        body = {"data": {"category": "dog", "version": "x" * 10_000}, "files": {"boxes": ("b", b"x")}}
        return await http.post("/estimate", **body, headers={"Authorization": f"Bearer {text}"})

    with http.gateway.budget.hold(70_000, one.id):
        assert one.id in problem(await send(first), 429, "queue_full")["detail"]
        problem(await send(second), 422, "no_images")
    problem(await send(first), 422, "no_images")
    with http.gateway.budget.hold(100_000, one.id):  # a single request may be as large as all together
        problem(await send(second), 429, "queue_full")
    assert http.gateway.budget.held == 0


async def test_streams_of_events_are_limited_and_end_with_their_key(serve, data_root, problem, monkeypatch):
    monkeypatch.setattr("service.access.keys.RELOAD_S", 0.05)
    http, store = await serve(api_keys=True), KeyStore(data_root)
    (one, first), (_, second) = (store.create(name, [Scope.READ]) for name in "ab")
    address = f"/train-jobs/{http.gateway.jobs.create(NewJob('dog', {'steps': 10}, 10)).id}/events"
    headers = [{"Authorization": f"Bearer {text}", "Accept": "text/event-stream"} for text in (first, second)]
    streams = http.gateway.streams
    stream = asyncio.create_task(http.get(address, headers=headers[0]))
    async with asyncio.timeout(20):
        while not streams.held:
            await asyncio.sleep(0.01)
        with streams.hold(191, one.id):  # three quarters of 256 are those of a key
            problem(await http.get(address, headers=headers[0]), 429, "queue_full")
            other = asyncio.create_task(http.get(address, headers=headers[1]))
            while streams.held < 193:
                await asyncio.sleep(0.01)
        assert not stream.done()
        store.revoke(one.id)
        assert "event: status" in (await stream).text
        assert not other.done()
        http.gateway.shutting_down = True
        await other
    assert streams.held == 0
