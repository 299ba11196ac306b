"""Every operation of the API has a command: a real gateway counts the requests of all commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from service.cli.main import app
from service.contract.jobs.store import JobStatus, JobStore
from tests.support.live_gateway import live_gateway, live_gateway_and_inspector

ONE, TWO = "20260101T000000-abc123", "20260102T000000-abc124"
FOR_MONITORS = {("GET", "/livez"), ("GET", "/metrics")}  # for monitoring


@pytest.fixture
def url(make_settings, publish) -> Iterator[str]:
    publish("dog", ONE)
    publish("dog", TWO)
    with live_gateway_and_inspector(make_settings()) as address:
        yield address


@pytest.fixture
def ppl(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPL_URL", url)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, [*map(str, arguments)])
        assert done.exit_code == 0, f"{arguments}: {done.output} {done.exception!r}"
        return done.stdout

    return run


@pytest.fixture
def labelled(tmp_path: Path, make_picture) -> Path:
    """Write a folder of six pictures, and the positions of their spots in labels.csv."""
    folder, rows = tmp_path / "photos", ["image,keypoint,x,y"]
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.png").write_bytes(make_picture(100, 80, (0.3 + 0.06 * n, 0.7 - 0.06 * n)))
        rows.append(f"{n}.png,spot,{30 + 6 * n},{56 - 4.8 * n}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def served(url: str) -> set[tuple[str, str]]:
    """Return method and route of all successful requests."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = [sample for family in families if family.name == "ppl_http_requests" for sample in family.samples]
    return {(s.labels["method"], s.labels["route"]) for s in samples if int(s.labels.get("status", 500)) < 400}


def test_each_operation_has_a_command(
    url: str, ppl: Callable[..., str], labelled: Path, redis_client: redis.Redis, video: Callable[..., bytes]
):
    def made(*arguments: object) -> Any:
        return json.loads(ppl(*arguments, "--json"))

    photo = labelled / "0.png"
    assert [entry["category"] for entry in made("priors")["items"]] == ["dog"]
    assert "dog" in ppl("priors")
    assert "written: links.png" in ppl("prior", "dog", "--link-map", "links.png")
    assert Path("links.png").read_bytes().startswith(b"\x89PNG")
    assert "3 banks of 2 vectors" in ppl("memory", "dog")
    assert made("memory", "dog")["prototypes"][0]["count"] == 60
    ppl("history", "dog")
    ppl("names", "dog")
    ppl("names", "dog", *"abcde")
    ppl("estimate", "dog", photo)
    ppl("landmarks", "fit", "dog", "spots", labelled, "--labels", "labels.csv")
    for what in ("list dog", "show dog spots", "delete dog spots"):
        ppl("landmarks", *what.split())
    ppl("versions", "list", "dog")
    ppl("versions", "diff", "dog", ONE, TWO)
    ppl("aliases", "set", "dog", "best", ONE)
    ppl("aliases", "set", "dog", "best", TWO, "--expected", ONE)
    ppl("aliases", "list", "dog")
    ppl("aliases", "remove", "dog", "best")
    ppl("versions", "delete", "dog", ONE)

    ended = made("estimate", "dog", photo, "--background")["id"]
    ppl("estimates", "show", ended, "--follow")
    ppl("estimates", "list")
    ppl("estimates", "delete", ended)

    dataset = made("datasets", "create", labelled)["id"]
    ppl("datasets", "list")
    ppl("datasets", "show", dataset)
    ppl("datasets", "sheet", dataset, "--out", "sheet.jpg")
    ppl("datasets", "pictures", dataset)
    ppl("datasets", "pictures", dataset, "--number", "0")
    Path("walk.mp4").write_bytes(video(3))
    filmed = made("datasets", "create", "walk.mp4")["id"]
    ppl("datasets", "pictures", filmed, "--frame", "walk.mp4#000002", "--out", "third.jpg")
    assert Path("third.jpg").read_bytes().startswith(b"\xff\xd8")
    ppl("datasets", "delete", filmed)
    job, jobs = made("train", "cat", "--dataset", dataset)["id"], JobStore(redis_client)
    jobs.update(job, lambda record: record.move(JobStatus.QUEUED))
    for command in ("job", "pause", "resume", "events", "checkpoints", "cancel", "forget"):
        ppl(command, job)
    assert made("jobs")["items"] == []
    ppl("datasets", "delete", dataset)
    ppl("webhooks", "secret")
    assert "inference worker" in ppl("status")

    operations = {
        (method.upper(), path)
        for path, methods in httpx.get(f"{url}/openapi.json").json()["paths"].items()
        for method in methods
    }
    # tested elsewhere: export needs a trained version, cancel a running estimate, a preview and a version of a
    # checkpoint a running training; poses without smoothing and labelled videos come of videos alone
    apart = {
        ("GET", "/priors/{category}/versions/{version}/export"): "versions export",
        ("POST", "/priors/{category}/versions/import"): "versions import",
        ("POST", "/estimates/{estimate_id}/cancel"): "estimates cancel",
        ("GET", "/estimates/{estimate_id}/result"): "estimates show",
        ("GET", "/priors/{category}/aliases/{alias}"): "aliases list",
        ("GET", "/train-jobs/{job_id}/preview"): "job",
        ("GET", "/train-jobs/{job_id}/boxes"): "job",
        ("POST", "/train-jobs/{job_id}/publish"): "publish",
        ("GET", "/estimates/{estimate_id}/raw"): "estimates show",
        ("GET", "/estimates/{estimate_id}/overlay"): "estimate",
    }
    for command in apart.values():
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0
    assert operations - served(url) - FOR_MONITORS - apart.keys() == set()


def test_status_shows_missing_parts_and_fails(make_settings, monkeypatch: pytest.MonkeyPatch, redis_client) -> None:
    with live_gateway(make_settings()) as url:
        ready = CliRunner().invoke(app, ["status", "--url", url])
        assert ready.exit_code == 0, ready.output
        assert "training worker    none is running" in ready.stdout
        assert json.loads(CliRunner().invoke(app, ["status", "--json", "--url", url]).stdout)["status"] == "ready"
        redis_client.delete(*redis_client.keys("ppl:worker*"))
        failed = CliRunner().invoke(app, ["status", "--url", url])
        assert failed.exit_code == 1
        assert "inference worker   none is running" in failed.stdout
        as_json = CliRunner().invoke(app, ["status", "--json", "--url", url])
        assert as_json.exit_code == 1
        assert json.loads(as_json.stderr)["missing"] == ["inference_worker"]


def test_boxes_of_a_video_are_used_for_each_frame(ppl: Callable[..., str], labelled: Path, video) -> None:
    Path("v.mp4").write_bytes(video(4))
    lines = ppl("estimate", "dog", "v.mp4", "--box", "0,0,24,32", "--box", "24,0,24,32", "--json").splitlines()
    found = sorted((json.loads(line)["frame"], json.loads(line)["box"]) for line in lines)
    assert found == [(frame, box) for frame in range(4) for box in range(2)]


def test_boxes_and_drawings(ppl: Callable[..., str], labelled: Path, tmp_path: Path) -> None:
    photo, other = labelled / "0.png", labelled / "1.png"
    one = json.loads(ppl("estimate", "dog", photo, "--box", "10,20,60,50", "--include", "codes", "--json"))["images"]
    assert [(image["index"], image.get("box")) for image in one] == [(0, None)]
    assert one[0]["codes"] == [1, 0, 1]
    turned = ("--box", "10,20,60,50,30", "--align", "heading", "--json")
    (image,) = json.loads(ppl("estimate", "dog", photo, *turned))["images"]
    assert image["region"] == {"x": 10, "y": 20, "width": 60, "height": 50, "angle": 30}
    two = ppl("estimate", "dog", photo, "--box", "10,20,60,50", "--box", "0,0,100,80", "--overlay", "pose.png")
    assert "box 1" in two
    assert "pose-2.png" in two
    Path("boxes.json").write_text("[[[10, 20, 60, 50], [0, 0, 100, 80]], null]")
    many = ppl("estimate", "dog", photo, other, "--boxes", "boxes.json", "--link-map", "links.png")
    assert [Path(f"links-{n}.png").exists() for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert many.count(" px") == 3
    lines = ppl(
        "estimate", "dog", photo, other, "--boxes", "boxes.json", "--format", "jsonl", "--include", "trajectory"
    )
    assert sorted(json.loads(line)["index"] for line in lines.splitlines()) == [0, 0, 1]
    assert all(len(json.loads(line)["trajectory"]) == 1 for line in lines.splitlines())
    assert ppl("estimate", "dog", photo, "--box", "10,20,60,50", "--format", "csv").count("\n") == 4
    Path("boxes.json").write_text("\ufeff[[10, 20, 60, 50]]", encoding="utf-8")
    assert " px" in ppl("estimate", "dog", photo, "--boxes", "boxes.json")
    for encoding in ("utf-16", "utf-8-sig"):  # as Excel writes "Unicode text", and CSV
        Path("boxes.txt").write_text("image\tx\ty\twidth\theight\n0.png\t1,5\t2\t30\t30\n", encoding=encoding)
        (cut,) = json.loads(ppl("estimate", "dog", photo, "--boxes", "boxes.txt", "--json"))["images"]
        assert [cut["region"][name] for name in ("x", "y", "width", "height")] == [1.5, 2, 30, 30]
    assert "[x, y, w, h]" in ppl("estimate", "--help")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0.png", "--box", "1,2,3"], "four numbers"),
        (["0.png", "--box", "1,2,3,4", "--boxes", "b.json"], "both --box and --boxes"),
        (["0.png", "1.png", "--box", "1,2,3,4"], "one picture and 2 came"),
        (["0.png", "--boxes", "none.json"], "can't read none.json"),
        (["0.png", "--boxes", "b.json"], "b.json is not a list with [x, y, width, height]"),
        (["0.png", "--boxes", "broken.json"], "broken.json is not JSON (EOF while parsing a list at line 1 column 9)"),
        (["0.png", "--boxes", "0.png"], "can't read 0.png: 'utf-8' codec"),
        (["0.png", "--format", "csv", "--include", "codes"], "no place for --include"),
        (["0.png", "--format", "coco", "--link-map", "a.png"], "no place for link maps"),
        (["0.png", "--background", "--link-map", "a.png"], "--link-map came with a video or --background"),
        (["0.png", "1.png", "--overlay", "."], "must name a file to draw into"),
        (["0.png", "--link-map", ""], "must name a file to draw into"),
        (["0.png", "--overlay", "a.png", "--link-map", "a.png"], "a file of its own"),
        (["0.png", "--include", "codes"], "needs --json"),
        (["0.png", "--boxes", "deep.json"], "for each picture"),
        (["v.mp4", "--boxes", "three.json"], "a video takes one"),
        (["v.mp4", "--boxes", "three.json", "--background"], "a video takes one"),
    ],
)
def test_invalid_options_are_refused(ppl, labelled: Path, monkeypatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(labelled)
    Path("b.json").write_text("[[1, 2], 5]")
    Path("broken.json").write_text("[[1, 2, 3")
    Path("deep.json").write_text("[" * 700 + "1,2,3,4" + "]" * 700)
    Path("three.json").write_text("[[0, 0, 50, 50], [1, 1, 50, 50], null]")
    done = CliRunner().invoke(app, ["estimate", "dog", *arguments])
    assert done.exit_code == 1, done.output
    assert said in done.stderr
