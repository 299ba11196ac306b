"""The client against a small HTTP server."""

from __future__ import annotations

import io
import re
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Response
from typer.testing import CliRunner

from service.cli.main import app as cli
from service.client import APIError, Client, InputError, JobStatus, Unreachable, png_bytes
from service.client.connection import is_loopback
from tests.support.api_double import ApiDouble, job_json, png, problem, serving

IMAGE = {"width": 64, "height": 48, "keypoints": [{"id": 0, "x": 1, "y": 2, "score": 0.9}], "links": []}


@pytest.fixture
def api() -> Iterator[ApiDouble]:
    with serving(ApiDouble()) as api:
        yield api


@pytest.fixture
def client(api: ApiDouble) -> Iterator[Client]:
    with Client(api.url) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "birds"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "b.PNG").write_bytes(png())
    (folder / "a.png").write_bytes(png())
    (folder / ".hidden.png").write_bytes(png())
    (folder / "notes.txt").write_text("not a picture")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.png").write_bytes(b"junk")
    return folder


@pytest.fixture
def nowhere() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_folder_is_sent_as_a_zip_of_its_pictures(client: Client, api: ApiDouble, folder: Path) -> None:
    job = client.train("bird", folder, preset="compact", settings={"steps": 20, "horizontal_flip": False})

    form = api.forms[0]
    name, content = form.pop("archive")[0]
    assert name == "birds.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["a.png", "sub/b.PNG"]
        assert archive.read("a.png") == png()
    assert form == {"category": ["bird"], "preset": ["compact"], "steps": ["20"], "horizontal_flip": ["false"]}
    assert job.status is JobStatus.VALIDATING


def test_an_archive_is_sent_as_it_is(client: Client, api: ApiDouble, tmp_path: Path) -> None:
    archive = tmp_path / "birds.tar.gz"
    archive.write_bytes(b"bytes of an archive")

    client.train("bird", archive)

    assert api.forms[0]["archive"] == [("birds.tar.gz", b"bytes of an archive")]


def test_a_folder_of_videos_is_sent_with_them(client: Client, api: ApiDouble, tmp_path: Path) -> None:
    (tmp_path / "walk.mp4").write_bytes(b"bytes of a video")

    client.train("bird", tmp_path)

    with zipfile.ZipFile(io.BytesIO(api.forms[0]["archive"][0][1])) as archive:
        assert archive.namelist() == ["walk.mp4"]


def test_labels_and_a_prior_are_sent(client: Client, api: ApiDouble, folder: Path, tmp_path: Path) -> None:
    labels, prior = tmp_path / "labels.csv", tmp_path / "mine.json"
    labels.write_bytes(b"image,keypoint,x,y")
    prior.write_bytes(b"{}")

    client.train("bird", folder, labels=labels, prior=prior)
    client.train("bird", folder, prior={"keypoint_prior": []})
    client.train("bird", folder, prior_from="bird@v1")

    assert api.forms[0]["labels"] == [("labels.csv", b"image,keypoint,x,y")]
    assert api.forms[0]["prior"] == [("mine.json", b"{}")]
    assert api.forms[1]["prior"] == [("prior.json", b'{"keypoint_prior": []}')]
    assert api.forms[2]["prior_from"] == ["bird@v1"]
    assert set(api.forms[2]) == {"category", "archive", "prior_from"}
    with pytest.raises(InputError, match="No such file"):
        client.train("bird", folder, labels=tmp_path / "absent.csv")


def test_training_without_activation(client: Client, api: ApiDouble, folder: Path) -> None:
    client.train("bird", folder)
    client.train("bird", folder, activate=False)

    assert ["activate" in form for form in api.forms] == [False, True]
    assert api.forms[1]["activate"] == ["false"]


def test_history_is_read(client: Client) -> None:
    history = client.history("bird")
    assert [snapshot.step for snapshot in history.snapshots] == [0, 20]


def test_a_folder_without_pictures_is_refused_before_anything_is_sent(
    client: Client, api: ApiDouble, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds no picture"):
        client.train("bird", tmp_path)
    assert not api.forms


def test_a_path_that_does_not_exist_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        client.train("bird", tmp_path / "absent.zip")
    with pytest.raises(InputError, match="No such file"):
        client.estimate("bird", [tmp_path / "absent.png"])


def test_api_error_has_code_detail_and_retry_after(
    client: Client, api: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("service.client.sync.transport.sleep", pauses.append)
    api.estimate_answer = problem(429, "queue_full", "512 pictures wait already", Retry_After="3")

    with pytest.raises(APIError) as caught:
        client.estimate("bird", [png()])

    error = caught.value
    assert (error.status, error.code, error.detail) == (429, "queue_full", "512 pictures wait already")
    assert error.retry_after_s == 3
    assert pauses == [3, 3, 3], "it came back as often as it may, and not too soon"
    assert error.problem["type"] == "about:blank"


def test_a_page_of_another_program_becomes_an_error(
    client: Client, api: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client.sync.transport.sleep", lambda _: None)
    from fastapi.responses import HTMLResponse

    api.estimate_answer = HTMLResponse("<h1>Bad gateway</h1>", 502)
    with pytest.raises(APIError, match="Bad gateway") as caught:
        client.estimate("bird", [png()])
    assert caught.value.status == 502

    api.estimate_answer = {"hello": "world"}
    with pytest.raises(APIError) as caught:
        client.estimate("bird", [png()])
    assert caught.value.code == "unexpected_answer"


def test_missing_server_error_says_how_to_start_one(nowhere: str) -> None:
    with Client(nowhere) as client, pytest.raises(Unreachable, match=r"no server answers at .*ppl up"):
        client.job("x")


def test_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPL_URL", "http://127.0.0.1:9999/")
    with Client() as client:
        assert client.base_url == "http://127.0.0.1:9999"


def test_wait_reports_each_state_and_returns_the_last(client: Client, api: ApiDouble) -> None:
    api.job_answers = [job_json(status=status) for status in ("validating", "queued", "running", "failed")]
    seen: list[str] = []

    job = client.wait("x", lambda job: seen.append(job.status), poll_s=0.001)

    assert seen == ["validating", "queued", "running", "failed"]
    assert job.status is JobStatus.FAILED


def test_wait_survives_a_short_outage(client: Client, api: ApiDouble) -> None:
    api.job_answers = [problem(503, "redis_unavailable", "away"), job_json(status="succeeded")]

    assert client.wait("x", poll_s=0.001).status is JobStatus.SUCCEEDED


def test_wait_raises_permanent_errors(client: Client, api: ApiDouble) -> None:
    api.job_answers = [problem(404, "unknown_job", "no such job")]

    with pytest.raises(APIError, match="no such job"):
        client.wait("x", poll_s=0.001)


def test_wait_times_out(client: Client, api: ApiDouble) -> None:
    api.job_answers = [job_json(status="running")]

    with pytest.raises(TimeoutError, match="has not ended"):
        client.wait("x", poll_s=0.01, timeout_s=0.05)


def test_jobs_run_through_all_pages(client: Client) -> None:
    assert [job.id for job in client.jobs()] == ["a" * 12, "b" * 12]


def test_cancel_and_delete_send_the_job_id(client: Client, api: ApiDouble) -> None:
    assert client.cancel("abc").status is JobStatus.CANCELLED
    client.delete("abc")

    assert api.cancelled == ["abc"]
    assert api.deleted == ["abc"]


def test_a_name_that_is_a_path_stays_one_segment(client: Client) -> None:
    with pytest.raises(APIError) as caught:
        client.prior("../train-jobs")
    assert caught.value.status == 404


def test_many_pictures_are_sent_in_parts_and_answered_as_one(
    client: Client, api: ApiDouble, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr("service.client.batches.POSES_A_REQUEST", 2)

    estimate = client.estimate(
        "bird", [png(), folder / "a.png", png()], version="v1", refine_steps=3, include=("link_map", "overlay")
    )

    assert [image.index for image in estimate.images] == [0, 1, 2]
    assert estimate.timing_ms.total == 10.0
    assert [len(form["images"]) for form in api.forms] == [2, 1]
    assert api.forms[0]["images"][1] == ("a.png", png())
    assert api.forms[1]["refine_steps"] == ["3"]
    assert api.forms[1]["include"] == ["link_map,overlay"]
    assert api.forms[1]["version"] == ["v1"]
    assert png_bytes(estimate.images[2].overlay or "") == png()
    assert estimate.images[0].keypoints[0].x == 10.5


def test_boxes_go_with_their_pictures(client: Client, api: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.batches.POSES_A_REQUEST", 2)

    client.estimate("bird", [png()] * 3, boxes=[(0, 0, 4, 4), (1, 1, 2, 2.5), (0, 1, 3, 3)])

    assert [form["boxes"] for form in api.forms] == [["[[0, 0, 4, 4], [1, 1, 2, 2.5]]"], ["[[0, 1, 3, 3]]"]]
    with pytest.raises(InputError, match="3 pictures came with 1 entries of boxes"):
        client.estimate("bird", [png()] * 3, boxes=[(0, 0, 4, 4)])


def test_prior_memory_link_map_and_list(client: Client, api: ApiDouble) -> None:
    prior = client.prior("bird", version="v1")

    assert prior.keypoint_prior == [(-0.5, 0.25), (0.5, 0.0)]
    assert api.queries == [{"version": "v1"}]
    assert client.memory("bird").prototypes[0].count == 7
    assert client.link_map("bird") == png()
    assert [entry.category for entry in client.priors()] == ["bird"]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_proxies_of_the_environment_are_not_used_for_loopback(
    api: ApiDouble, nowhere: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, nowhere)
    for url in (api.url, api.url.replace("127.0.0.1", "localhost")):
        with Client(url) as client:
            assert list(client.priors()) is not None


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost:8000", True),
        ("http://127.8.9.10", True),
        ("http://[::1]:80/x", True),
        ("http://10.0.0.1:8000", False),
        ("http://localhost.example.org", False),
        ("http://[", False),
        ("nonsense", False),
    ],
)
def test_loopback_addresses_are_recognised(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


@pytest.mark.parametrize("name", ["", ".", ".."])
@pytest.mark.parametrize(
    "call",
    [
        lambda client, name: client.prior(name),
        lambda client, name: client.job(name),
        lambda client, name: client.datasets.get(name),
        lambda client, name: client.estimate_job(name),
        lambda client, name: client.aliases.delete("dog", name),
    ],
)
def test_names_that_change_the_path_are_refused(nowhere: str, call, name: str) -> None:
    with (
        Client(nowhere, retries=0) as client,
        pytest.raises(InputError, match=f"the name or id is '{re.escape(name)}'"),
    ):
        call(client, name)


def answering(content: bytes, kind: str = "application/json") -> SimpleNamespace:
    """Serve another program's answer, with status 200, to every request."""
    pages = FastAPI(openapi_url=None)

    @pages.api_route("/{path:path}", methods=["GET", "POST", "DELETE", "PUT"])
    async def anything(path: str) -> Response:
        return Response(content, media_type=kind)

    return SimpleNamespace(app=pages, url="")


@pytest.mark.parametrize("content", [b"<html>login</html>", b"[]", b"null", b'{"a": 1}', b"{"])
def test_answers_of_another_program_raise_api_error(content: bytes, folder: Path) -> None:
    picture = folder / "a.png"
    with serving(answering(content)) as stranger, Client(stranger.url) as client:
        for call in (
            lambda: list(client.priors()),
            lambda: list(client.jobs()),
            lambda: list(client.estimates()),
            lambda: client.prior("dog"),
            lambda: client.webhook_secret(),
            lambda: client.estimate("dog", [picture]),
            lambda: list(client.estimate_lines("dog", [picture])),
        ):
            with pytest.raises(APIError, match="not of this API") as caught:
                call()
            assert caught.value.code == "unexpected_answer"
        done = CliRunner().invoke(cli, ["priors", "--url", stranger.url])
    assert done.exit_code == 1
    assert "unexpected_answer" in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_web_pages_are_refused_as_results(tmp_path: Path, folder: Path) -> None:
    with serving(answering(b"<html>login</html>", "text/html")) as stranger, Client(stranger.url) as client:
        for call in (
            lambda: client.estimate_as("csv", "dog", [folder / "a.png"]),
            lambda: client.versions.export("dog", "v1", tmp_path / "v.zip"),
            lambda: client.delete("0123456789"),
        ):
            with pytest.raises(APIError, match="web page"):
                call()
    assert not (tmp_path / "v.zip").exists()


def test_no_pictures_are_refused_before_anything_is_sent(nowhere: str) -> None:
    with Client(nowhere) as client, pytest.raises(InputError, match="no pictures were given"):
        client.estimate("dog", [])


def test_bad_picture_of_a_later_request_is_numbered_among_all() -> None:
    sizes = []

    def answer(request: httpx.Request) -> httpx.Response:
        sizes.append(request.content.count(b'name="images"'))
        if len(sizes) == 1:
            images = [{**IMAGE, "index": index} for index in range(sizes[0])]
            timing = {"decode": 1, "queue": 1, "model": 1, "total": 3}
            return httpx.Response(200, json={"category": "a", "version": "b", "images": images, "timing_ms": timing})
        return httpx.Response(
            422, json={"detail": "images[3] (x.png) ends early", "index": 3, "code": "truncated_image"}
        )

    with Client("http://127.0.0.1:9", transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(APIError) as caught:
            client.estimate("dog", [png()] * 100)
    assert len(sizes) == 2
    assert caught.value.problem["index"] == sizes[0] + 3
    assert caught.value.detail == f"images[{sizes[0] + 3}] (x.png) ends early"
