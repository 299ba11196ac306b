"""Webhooks: the ends of jobs, sent to a real receiver on this machine."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from service.client.errors import InputError
from service.client.webhook_signature import verify_webhook
from service.contract import routing
from service.contract.errors import StoreUnavailable
from service.contract.jobs.store import JobStatus, JobStore, NewJob
from service.contract.settings import CommonSettings
from service.runtime.secrets import webhook_secret
from service.training.webhooks import WebhookSender
from tests.support.clocks import set_clock

from .test_train_jobs import GOOD


class Receiver:
    """A server that records requests and answers with the given statuses, then with 204."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests.append((dict(self.headers), body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", f"{receiver.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def jobs(redis_client):
    return JobStore(redis_client)


def ended(jobs: JobStore, url: str, status: JobStatus = JobStatus.FAILED) -> str:
    job = jobs.create(NewJob("dog", {}, 5, webhook_url=url))
    jobs.update(job.id, lambda record: record.move(status))
    return job.id


async def until(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def deliver_due(sender: WebhookSender) -> None:
    """Run one round and wait for its deliveries."""
    await sender.start_due()
    await asyncio.gather(*sender._running.values())


async def test_end_of_a_job_is_sent_and_signed(serve, receiver, data_root):
    http = await serve(webhook_private=True)
    data = {"category": "dog", "webhook_url": f"{receiver.url}/hook?a=1"}
    job = (await http.post("/train-jobs", data=data, files={"archive": ("a.zip", GOOD)})).json()
    assert job["webhook"] == {
        "url": f"{receiver.url}/hook?a=1",
        "status": "pending",
        "attempts": 0,
        "last_error": None,
        "delivered_at": None,
    }
    await http.post(f"/train-jobs/{job['id']}/cancel")
    await until(lambda: receiver.requests)
    headers, body = receiver.requests[0]
    secret = (await http.get("/webhooks/secret")).json()["secret"]
    event = verify_webhook(headers, body, secret)
    assert event["type"] == "train_job.cancelled"
    assert event["data"]["id"] == job["id"]
    assert event["data"]["status"] == "cancelled"
    assert event["timestamp"] == event["data"]["finished_at"]
    assert {name.lower(): value for name, value in headers.items()}["host"] == receiver.url.removeprefix("http://")
    with pytest.raises(InputError):
        verify_webhook(headers, body + b" ", secret)
    with pytest.raises(InputError):
        verify_webhook({**headers, "webhook-timestamp": "1"}, body, secret)
    with pytest.raises(InputError):
        verify_webhook({}, body, secret)

    async def delivered() -> bool:
        return (await http.get(f"/train-jobs/{job['id']}")).json()["webhook"]["status"] == "delivered"

    for _ in range(100):
        if await delivered():
            break
        await asyncio.sleep(0.05)
    assert await delivered()
    await asyncio.sleep(0.5)  # some rounds more
    assert len(receiver.requests) == 1
    # the stream of events still ends with the job's end
    events = (await http.get(f"/train-jobs/{job['id']}/events")).json()["items"]
    assert events[-1]["kind"] == "completed"


async def test_next_gateway_sends_what_ended_while_none_ran(serve, receiver, jobs):
    job_id = ended(jobs, receiver.url)
    await serve(webhook_private=True)
    await until(lambda: receiver.requests)
    assert json.loads(receiver.requests[0][1])["data"]["id"] == job_id


@pytest.fixture
def sender(serve, jobs):
    async def make(private: bool = True) -> WebhookSender:
        """Return a sender that sends only when the test calls it."""
        http = await serve(webhook_private=private)
        gateway = http.gateway
        loop = next(task for task in gateway._loops if task.get_name() == "webhooks")
        loop.cancel()
        await asyncio.sleep(0.05)
        return gateway.webhooks

    return make


async def test_it_is_sent_again_until_it_is_taken(sender, receiver, jobs, redis_client, monkeypatch):
    monkeypatch.setattr("service.training.webhooks.RETRIES_S", (0.0, 0.0, 0.0))
    sender = await sender()
    receiver.answers = [500, 302]
    job_id = ended(jobs, receiver.url)
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.model_dump(exclude={"url"}) == {
        "status": "pending",
        "attempts": 1,
        "last_error": "the receiver answered 500",
        "delivered_at": None,
    }
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.last_error == "the receiver answered 302"  # the redirect was not followed
    await deliver_due(sender)
    webhook = jobs.get(job_id).webhook
    assert (webhook.status, webhook.attempts, webhook.last_error) == ("delivered", 3, None)
    assert redis_client.zcard(routing.WEBHOOKS) == 0
    ids = {headers["webhook-id"] for headers, _ in receiver.requests}
    assert ids == {f"msg_{job_id}"}


async def test_pauses_between_attempts_grow_and_end_after_about_a_day(sender, receiver, jobs, redis_client):
    from service.training.webhooks import RETRIES_S

    assert list(RETRIES_S) == sorted(RETRIES_S)
    assert 24 * 3600 <= sum(RETRIES_S) <= 36 * 3600
    sender = await sender()
    receiver.answers = [503] * 20
    job_id = ended(jobs, receiver.url)
    for pause_s in RETRIES_S:
        await deliver_due(sender)
        due = redis_client.zscore(routing.WEBHOOKS, job_id)
        assert due == pytest.approx(redis_client.time()[0] + pause_s, abs=5)
        await deliver_due(sender)  # not due yet
        redis_client.zadd(routing.WEBHOOKS, {job_id: 0})
    await deliver_due(sender)
    webhook = jobs.get(job_id).webhook
    assert (webhook.status, webhook.attempts) == ("failed", len(RETRIES_S) + 1)
    assert redis_client.zcard(routing.WEBHOOKS) == 0
    assert len(receiver.requests) == len(RETRIES_S) + 1


@pytest.mark.parametrize("offset_s", [86_400.0, -86_400.0])
async def test_clocks_of_machines_neither_delay_nor_hurry_a_webhook(
    sender, receiver, jobs, redis_client, monkeypatch, offset_s
):
    """A job ends on a machine of one clock, and a gateway of another one sends and repeats."""
    sender = await sender()
    receiver.answers = [503]
    with monkeypatch.context() as elsewhere:
        set_clock(elsewhere, offset_s)
        job_id = ended(jobs, receiver.url)
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.attempts == 1
    set_clock(monkeypatch, offset_s)
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.attempts == 1, "it is due in 5 s"
    redis_client.zincrby(routing.WEBHOOKS, -5.1, job_id)
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.status == "delivered"
    assert len(receiver.requests) == 2


async def test_webhook_postponed_before_the_clock_of_redis_was_set_back_is_sent(sender, receiver, jobs, redis_client):
    sender = await sender()
    job_id = ended(jobs, receiver.url)
    redis_client.zadd(routing.WEBHOOKS, {job_id: redis_client.time()[0] + 30 * 86_400})
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.status == "delivered"


async def test_receiver_that_is_gone_is_not_asked_again(sender, receiver, jobs, redis_client):
    sender = await sender()
    receiver.answers = [410]
    job_id = ended(jobs, receiver.url)
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.status == "failed"
    assert redis_client.zcard(routing.WEBHOOKS) == 0


async def test_missing_receiver_is_recorded(sender, receiver, jobs):
    sender = await sender()
    job_id = ended(jobs, receiver.url)
    receiver.close()
    await deliver_due(sender)
    webhook = jobs.get(job_id).webhook
    assert webhook.status == "pending"
    assert "ConnectError" in webhook.last_error


async def test_two_gateways_tell_it_once(sender, receiver, jobs):
    first = await sender()
    for _ in range(4):
        ended(jobs, receiver.url)
    other = await sender()
    await asyncio.gather(deliver_due(first), deliver_due(other), deliver_due(first))
    assert len(receiver.requests) == 4


async def test_a_name_that_leads_to_a_private_address_gets_nothing(sender, receiver, jobs, monkeypatch):
    """As after a change of its DNS entry: the address is checked at each delivery, and the very one is connected to."""
    sender = await sender(private=False)
    port = receiver.url.rpartition(":")[2]
    job_id = ended(jobs, f"http://rebound.example:{port}/")
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def rebound(host, *arguments, **named):
        return await real("127.0.0.1" if host == "rebound.example" else host, *arguments, **named)

    monkeypatch.setattr(loop, "getaddrinfo", rebound)
    await deliver_due(sender)
    webhook = jobs.get(job_id).webhook
    assert webhook.status == "pending"
    assert "private" in webhook.last_error
    assert "127.0.0.1" not in webhook.last_error
    assert receiver.requests == []


async def test_a_name_is_resolved_once_and_all_its_addresses_are_checked(sender, receiver, jobs, monkeypatch):
    """A name may have a public address beside a private one, or another one when it is asked again."""
    sender = await sender(private=False)
    port = receiver.url.rpartition(":")[2]
    loop = asyncio.get_running_loop()
    asked = []
    answers = {"both.example": ["93.184.216.34", "127.0.0.1"], "turn.example": ["::ffff:127.0.0.1"]}

    async def resolve(host, *_arguments, **_named):
        asked.append(host)
        return [(0, 0, 0, "", (address, int(port))) for address in answers[host]]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    job_ids = [ended(jobs, f"http://{host}:{port}/") for host in answers]
    await deliver_due(sender)
    for job_id in job_ids:
        assert "private" in jobs.get(job_id).webhook.last_error
    assert receiver.requests == []
    assert sorted(asked) == sorted(answers)

    connected = []

    async def public(host, *_arguments, **_named):
        asked.append(host)
        return [(0, 0, 0, "", ("93.184.216.34", int(port)))]

    async def send(self, request, **_named):
        connected.append((str(request.url.host), request.headers["host"], request.extensions["sni_hostname"]))
        raise httpx.ConnectError("no network in tests")

    monkeypatch.setattr(loop, "getaddrinfo", public)
    monkeypatch.setattr(httpx.AsyncClient, "send", send)
    asked.clear()
    ended(jobs, f"https://once.example:{port}/")
    await deliver_due(sender)
    assert asked == ["once.example"]
    assert connected == [("93.184.216.34", f"once.example:{port}", "once.example")]


async def test_private_address_is_refused_at_the_door(http, problem, no_trace):
    data = {"category": "dog", "webhook_url": "http://169.254.169.254/latest"}
    answer = await http.post("/train-jobs", data=data, files={"archive": ("a.zip", GOOD)})
    assert "PPL_WEBHOOK_PRIVATE" in problem(answer, 422, "bad_webhook")["detail"]
    no_trace()
    body = {"category": "dog", "folder": "x", "webhook_url": 5}
    assert (await http.post("/train-jobs", json=body)).status_code in (400, 422)


async def test_deleted_job_sends_no_webhook(sender, receiver, jobs, redis_client):
    sender = await sender()
    jobs.delete(ended(jobs, receiver.url))
    assert redis_client.zcard(routing.WEBHOOKS) == 0
    redis_client.zadd(routing.WEBHOOKS, {"0123456789abcdef": 0})
    await deliver_due(sender)
    assert redis_client.zcard(routing.WEBHOOKS) == 0
    assert receiver.requests == []


async def test_webhook_waits_for_a_store_that_is_away(sender, jobs, receiver, redis_client):
    """As its secret is there; it is no attempt."""

    def fail() -> str:
        raise StoreUnavailable("away")

    sender = await sender()
    job_id, secret = ended(jobs, receiver.url), sender._secret
    sender._secret = fail
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.attempts == 0
    sender._secret = secret
    await deliver_due(sender)
    assert jobs.get(job_id).webhook.status == "delivered"


async def test_job_without_webhook_sends_nothing(jobs, redis_client):
    job = jobs.create(NewJob("dog", {}, 5))
    jobs.update(job.id, lambda record: record.move(JobStatus.FAILED))
    assert redis_client.zcard(routing.WEBHOOKS) == 0
    assert jobs.get(job.id).webhook is None


# the secret


def test_secret_is_made_once_and_readable_by_its_owner_alone(data_root):
    settings = CommonSettings(data_root=data_root)
    first = webhook_secret(settings)
    assert first.startswith("whsec_")
    assert webhook_secret(settings) == first
    assert stat.S_IMODE((data_root / "webhook-secret").stat().st_mode) == 0o600
    assert webhook_secret(settings, "whsec_other") == "whsec_other"


def test_machines_that_share_an_object_store_sign_with_one_secret(tmp_path):
    """That of the machine which had one before, or one that is created once."""
    before = webhook_secret(CommonSettings(data_root=tmp_path / "0"))
    for bucket, first in (("a", 0), ("b", 1)):
        url = f"file://{tmp_path}/{bucket}"
        machines = [CommonSettings(data_root=tmp_path / str(n), store_url=url) for n in range(first, first + 6)]
        with ThreadPoolExecutor(6) as pool:
            found = {webhook_secret(machines[0]), *pool.map(webhook_secret, machines)}
        assert len(found) == 1
        assert (before in found) is (bucket == "a")


def test_secret_of_the_settings_must_be_one():
    from service.runtime.settings import Settings

    with pytest.raises(ValueError, match="whsec_ and the base64"):
        Settings(webhook_secret="hello")
    assert "AAAA" not in repr(Settings(webhook_secret="whsec_" + "AAAA" * 10))


async def test_receivers_that_never_answer_hold_up_no_others(serve, receiver, jobs):
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        for _ in range(40):
            ended(jobs, f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        http = await serve(webhook_private=True)
        await until(lambda: http.gateway.webhooks._running)
        job_id = ended(jobs, receiver.url)
        await until(lambda: receiver.requests)
        assert time.monotonic() - started < 10  # each of them is waited for 15 s
        assert json.loads(receiver.requests[0][1])["data"]["id"] == job_id
        busy = http.gateway.webhooks._busy
        assert max(count for (kind, _), count in busy.items() if kind == "host") <= 4


async def test_what_one_key_asked_for_leaves_room_for_others(serve, receiver, jobs):
    with ExitStack() as opened:
        for _ in range(12):
            silent = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=10))
            for _ in range(3):
                url = f"http://127.0.0.1:{silent.getsockname()[1]}"
                job = jobs.create(NewJob("dog", {}, 5, webhook_url=url, owner="greedy"))
                jobs.update(job.id, lambda record: record.move(JobStatus.FAILED))
        http = await serve(webhook_private=True)
        await until(lambda: http.gateway.webhooks._running)
        ended(jobs, receiver.url)
        await until(lambda: receiver.requests)
        assert http.gateway.webhooks._busy["key", "greedy"] == 12
