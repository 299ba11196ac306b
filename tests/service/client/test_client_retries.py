"""Which requests the client retries."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from service.client import APIError, Client, Unreachable
from service.client.errors import CannotConnect
from service.client.retries import retry_delay_s
from tests.support.api_double import job_json


def problem(status: int, after: str | None = None) -> httpx.Response:
    headers = {"Retry-After": after} if after else {}
    return httpx.Response(status, json={"code": "x", "detail": "later"}, headers=headers)


class Server:
    """Gives its answers in turn, then repeats the last."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def slept(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("service.client.sync.transport.sleep", pauses.append)
    return pauses


def client(server: Server, **options) -> Client:
    return Client("http://127.0.0.1:9", transport=httpx.MockTransport(server), **options)


GOOD = httpx.Response(200, json={"items": [], "next_cursor": None})


def test_retries_after_the_time_that_the_server_names(slept):
    server = Server(problem(429, "7"), problem(503, "2"), GOOD)
    assert list(client(server).jobs()) == []
    assert len(server.requests) == 3
    assert slept[0] == 7
    assert slept[1] >= 2


def test_retry_after_may_be_a_date(slept):
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    list(client(Server(problem(503, moment), GOOD)).jobs())
    assert slept[0] == pytest.approx(20, abs=2)


def test_long_retry_after_is_raised_at_once(slept):
    server = Server(problem(429, "3600"))
    with pytest.raises(APIError) as refused:
        list(client(server).jobs())
    assert refused.value.retry_after_s == 3600
    assert slept == []


def test_error_is_raised_after_the_last_retry(slept):
    server = Server(problem(429, "1"))
    with pytest.raises(APIError):
        list(client(server, retries=2).jobs())
    assert len(server.requests) == 3
    assert slept == sorted(slept)  # at least what the server said, and longer each time
    once = Server(problem(429, "1"))
    with pytest.raises(APIError):
        list(client(once, retries=0).jobs())
    assert len(once.requests) == 1


def test_pictures_are_sent_whole_on_retry(slept, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"the picture")
    server = Server(problem(429, "1"), httpx.ReadError("broken"), problem(422))
    with pytest.raises(APIError):
        client(server).estimate("dog", [path])
    bodies = [request.content for request in server.requests]
    assert len(bodies) == 3
    assert all(b"the picture" in body for body in bodies)


def test_training_is_retried_with_the_same_idempotency_key(slept, tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK")
    server = Server(httpx.ReadError("broken"), problem(422))
    with pytest.raises(APIError):
        client(server).train("dog", path)
    keys = {request.headers["Idempotency-Key"] for request in server.requests}
    assert len(server.requests) == 2
    assert len(keys) == 1


@pytest.mark.parametrize("failure", [httpx.ReadError("broken"), problem(502), problem(504)])
def test_requests_that_are_not_repeatable_are_sent_once(slept, failure):
    server = Server(failure)
    with pytest.raises((Unreachable, APIError)):
        client(server).send("POST", "/train-jobs/0123456789/publish")  # without an Idempotency-Key
    assert len(server.requests) == 1


def test_permanent_errors_are_not_retried(slept):
    for status in (400, 401, 403, 404, 409, 422, 500):
        server = Server(problem(status, "1"))
        with pytest.raises(APIError):
            list(client(server).jobs())
        assert len(server.requests) == 1, status


def test_refused_connection_is_raised_at_once(slept):
    begun = time.monotonic()
    with pytest.raises(CannotConnect, match="ppl up"), Client("http://127.0.0.1:1") as unreachable:
        unreachable.prior("dog")
    assert time.monotonic() - begun < 2


def test_broken_reads_are_retried():
    assert retry_delay_s(0, "GET", "/priors", None, Unreachable("broke"))
    assert retry_delay_s(0, "PUT", "/priors/dog/aliases/best", None, Unreachable("broke"))
    assert retry_delay_s(0, "POST", "/priors/dog/versions/import", None, Unreachable("broke")) is None
    assert retry_delay_s(0, "GET", "/priors", None, APIError({}, 503)) is None  # without Retry-After


ERROR = '{"type": "urn:x", "title": "X", "status": 422, "code": "x", "detail": "y", "index": 0}'
LINE = f'{{"index": 0, "error": {ERROR}}}\n'
LINES = httpx.Response(200, text=LINE + '{"summary": {}}\n')


@pytest.mark.parametrize(
    "begin", [lambda one: one.estimate_lines("dog", [b"picture"]), None], ids=["pictures", "video"]
)
def test_lines_are_retried_before_the_first_arrives(slept, begin, tmp_path):
    film = tmp_path / "a.mp4"
    film.write_bytes(b"film")
    begin = begin or (lambda one: one.estimate_video("dog", film))
    server = Server(problem(429, "3"), httpx.ReadError("broken"), LINES)
    (found,) = begin(client(server))
    assert found.error.code == "x"
    assert len(server.requests) == 3
    assert slept[0] == 3
    sent = [request.content.split(b"\r\n", 1)[1].rpartition(b"--")[0] for request in server.requests]
    assert all(b"picture" in body or b"film" in body for body in sent)


def test_lines_that_break_off_are_not_retried(slept):
    server = Server(httpx.Response(200, text=LINE))
    with pytest.raises(APIError, match="broke off"):
        list(client(server).estimate_lines("dog", [b"picture"]))
    assert len(server.requests) == 1


def test_download_is_retried(slept, tmp_path):
    server = Server(problem(503, "1"), httpx.Response(200, content=b"whole"))
    assert client(server).download("/x", tmp_path / "x").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_background_estimate_is_retried_with_the_same_idempotency_key(slept):
    server = Server(httpx.ReadError("broken"), problem(422))
    with pytest.raises(APIError):
        client(server).estimate_async("dog", [b"picture"])
    keys = {request.headers["Idempotency-Key"] for request in server.requests}
    assert len(server.requests) == 2
    assert len(keys) == 1


BROKEN = httpx.ReadError("broken")


def test_a_deletion_whose_response_was_lost_succeeds(slept):
    client(Server(BROKEN, problem(404))).datasets.delete("d")
    with pytest.raises(APIError):
        client(Server(problem(404))).datasets.delete("d")
    with pytest.raises(APIError):
        client(Server(problem(503, "1"), problem(404))).datasets.delete("d")


def test_a_cancellation_whose_response_was_lost_succeeds(slept):
    done = httpx.Response(200, json=job_json(status="cancelled"))
    assert client(Server(BROKEN, problem(409), done)).cancel("0a1b2c3d4e5f").status == "cancelled"
    succeeded = httpx.Response(200, json=job_json(status="succeeded"))
    for answers in ((problem(409), done), (BROKEN, problem(409), succeeded)):
        with pytest.raises(APIError) as refused:
            client(Server(*answers)).cancel("0a1b2c3d4e5f")
        assert refused.value.status == 409


def test_a_moved_alias_whose_response_was_lost_is_returned(slept):
    def alias(version):
        return httpx.Response(200, json={"category": "dog", "alias": "best", "version": version})

    found = client(Server(alias("v1"), BROKEN, problem(412), alias("v2"))).aliases.put("dog", "best", "v2")
    assert found.version == "v2"
    for answers in ((problem(412), alias("v2")), (BROKEN, problem(412), alias("v3"))):
        with pytest.raises(APIError) as refused:
            client(Server(alias("v1"), *answers)).aliases.put("dog", "best", "v2")
        assert refused.value.status == 412


class Breaking(httpx.SyncByteStream):
    """A body that breaks off after some parts."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def __iter__(self):
        yield from self._parts
        raise httpx.RemoteProtocolError("peer closed connection")


def test_lines_of_a_killed_gateway_are_asked_for_again_and_come_once(slept):
    lines = [LINE, LINE.replace('"index": 0', '"index": 1')]
    whole = httpx.Response(200, text="".join(lines) + '{"summary": {}}\n')
    server = Server(httpx.Response(200, stream=Breaking(lines[0].encode())), whole)
    found = list(client(server).estimate_lines("dog", [b"one", b"two"]))
    assert [line.index for line in found] == [0, 1]
    assert len(server.requests) == 2


def test_a_download_that_breaks_off_goes_on(slept, tmp_path):
    server = Server(httpx.Response(200, stream=Breaking(b"wh", b"o")), httpx.Response(200, content=b"whole"))
    assert client(server).download("/x", tmp_path / "x").read_bytes() == b"whole"
    broken = Server(*(httpx.Response(200, stream=Breaking(b"wh")) for _ in range(2)))
    with pytest.raises(Unreachable):
        client(broken, retries=1).download("/x", tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
