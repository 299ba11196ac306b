"""The API's documentation: every operation with its examples and errors, and the examples as a gateway answers.

Where answers change, ``PPL_WRITE_EXAMPLES=1 pytest tests/service/gateway/test_api_examples.py`` writes them anew.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from model.config import settings
from service.contract.datasets.dataset import DatasetStatus, Findings, Found, MotionBox, MotionFound
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import ERROR_BY_CODE, PPLError
from service.contract.jobs.job import Checkpoint
from service.contract.jobs.store import JobStatus
from service.contract.media.boxes import FoundBox, write_csv
from service.contract.versions.store import VersionStore
from service.gateway import openapi_examples
from service.http.problems import MEDIA_TYPE, StorageFull
from service.versions.samples import install_samples
from tests.service.http.test_errors import every
from tests.service.training.test_datasets import packed
from tests.service.versions.test_landmarks import fit, labelled  # noqa: F401 a fixture
from tests.support.jobs import hold, move

OLD, NEW = "20251231T235959-0d1e2f", "20260101T000000-abc123"
# those that answer without a body, or with bytes that are no text
_NO_TEXT = ("image/png", "image/jpeg", "application/zip", "application/x-hdf5", "video/mp4")


@pytest.fixture
async def described(http) -> dict[str, Any]:
    return (await http.get("/openapi.json")).json()


def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    paths = described["paths"].items()
    return [(method.upper(), path, operation) for path, methods in paths for method, operation in methods.items()]


def checked(described: dict[str, Any], schema: dict[str, Any], example: Any, where: str) -> None:
    whole = {**schema, "components": described["components"]}
    errors = list(jsonschema_rs.Draft202012Validator(whole).iter_errors(example))
    assert not errors, f"{where}: {errors[0]}"


async def test_every_operation_is_described_whole(described):
    names = set()
    for method, path, operation in operations(described):
        this = f"{method} {path}"
        assert operation["summary"], this
        assert len(operation["description"]) > 20, this
        assert operation["tags"], this
        names.add(operation["operationId"])
        assert operation["operationId"].isidentifier(), this
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (
                f"{this}: {parameter['name']} has no description (service/gateway/openapi_examples.py)"
            )
            schema = parameter["schema"]
            known = {"default", "examples", "enum"} & schema.keys() or parameter["name"] == "cursor"
            assert known, f"{this}: {parameter['name']} has no example (service/gateway/openapi_examples.py)"
    assert len(names) == len(operations(described))


async def test_every_body_has_an_example_of_its_schema(described):
    for method, path, operation in operations(described):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            where = f"{method} {path} {kind}"
            examples = [content["example"]] if "example" in content else []
            examples += [example["value"] for example in content.get("examples", {}).values()]
            assert examples, f"{where} has no example: add it to REQUESTS of service/gateway/openapi_examples.py"
            for example in examples:
                checked(described, content["schema"], example, where)


async def test_every_answer_has_an_example_of_its_schema(described):
    for method, path, operation in operations(described):
        statuses = [status for status in operation["responses"] if status.startswith("2")]
        assert statuses, path
        for status in statuses:
            for kind, content in operation["responses"][status].get("content", {}).items():
                where = f"{method} {path} {status} {kind}"
                if kind in _NO_TEXT:
                    continue
                assert "example" in content, f"{where} has no example: add the call to the tour in this file"
                if kind == "application/json":
                    checked(described, content["schema"], content["example"], where)


async def test_every_operation_declares_its_errors_with_an_example(described):
    statuses: dict[str, set[int]] = {}
    for kind in (*every(PPLError), StorageFull):
        statuses.setdefault(str(kind.code), set()).add(kind.status)
    codes = set(ERROR_BY_CODE)
    for method, path, operation in operations(described):
        where = f"{method} {path}"
        declared = operation["responses"]
        assert "500" in declared, where
        if "security" in operation:
            assert {"401", "403", "429"} <= declared.keys(), where
        if "requestBody" in operation:
            assert {"400", "413", "422"} <= declared.keys(), where
        for status, response in declared.items():
            if status == "default" or int(status) >= 400:
                assert set(response["content"]) == {MEDIA_TYPE}, (where, status)
            if status.isdigit() and int(status) >= 400:
                example = response["content"][MEDIA_TYPE]["example"]
                checked(described, response["content"][MEDIA_TYPE]["schema"], example, f"{where} {status}")
                assert example["code"] in codes, (where, status)
                assert example["status"] == int(status)
                # the code is one that goes with the status; bad_request is any error of a request
                code = example["code"]
                assert int(status) in statuses[code] or code == "bad_request", (where, status, code)


# the examples of answers


class Tour:
    """A client that asks a gateway for one response of each kind."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.answers: dict[str, Any] = {}

    async def ask(self, method: str, path: str, template: str = "", **content: Any) -> httpx.Response:
        answer = await self.http.request(method, path, **content)
        assert answer.is_success, (method, path, answer.text)
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if kind == "application/json":
            self.note(method, template or path, answer.status_code, kind, answer.json())
        elif kind and kind not in _NO_TEXT:
            self.note(method, template or path, answer.status_code, kind, answer.text)
        return answer

    def note(self, method: str, template: str, status: int, kind: str, value: Any) -> None:
        self.answers.setdefault(f"{method} {template} {status} {kind}", value)


async def walk(http, data_root, make_picture, labelled, sample: str) -> dict[str, Any]:  # noqa: F811
    """Call every operation that answers with text."""
    tour = Tour(http)
    ask, jobs = tour.ask, http.gateway.jobs
    picture = make_picture()
    for path in ("/livez", "/readyz"):
        await ask("GET", path)
    metrics = await http.get("/metrics")
    tour.note("GET", "/metrics", 200, "text/plain", "\n".join(metrics.text.splitlines()[:4]) + "\n")
    # datasets
    archive = packed(*[f"{n}.png" for n in range(12)])
    files = {"archive": ("birds.zip", archive), "name": (None, "garden")}
    made = (await ask("POST", "/datasets", files=files)).json()
    await ask("POST", "/datasets", files=files)
    box = MotionBox(image="3.png", x=12.5, y=30.0, width=64.0, height=64.0, confidence=0.93)
    motion = MotionFound(sure=True, clips=1, frames=12, found=11, side_px=64.0, boxes=[box])
    found = Found(pictures=12, formats={"PNG": 12}, skipped=1, motion=motion)
    DatasetFiles(data_root).write_findings(made["id"], Findings(status=DatasetStatus.READY, found=found))
    await ask("GET", "/datasets")
    await ask("GET", f"/datasets/{made['id']}", "/datasets/{dataset_id}")
    await ask("GET", f"/datasets/{made['id']}/pictures?limit=2", "/datasets/{dataset_id}/pictures")
    # jobs
    fields = {"category": "dog", "steps": "2000"}
    job = (await ask("POST", "/train-jobs", data=fields, files={"archive": ("a.zip", archive)})).json()
    one = "/train-jobs/{job_id}"

    def train(record) -> None:
        record.move(JobStatus.QUEUED)
        record.move(JobStatus.RUNNING)
        record.job.progress.step, record.job.progress.fraction, record.job.progress.eta_s = 500, 0.25, 431.5
        record.job.progress.stage = "training"
        record.job.metrics = {"images": 12, "skipped": 0, "mode": "stills", "total": 1.83, "steps_per_s": 3.4}
        made = Checkpoint(step=500, saved_at=datetime.now(UTC), size_bytes=9_800_000, losses={"total": 1.83})
        record.checkpoint(made, 145.0)

    hold(jobs, job["id"])
    jobs.update(job["id"], train)
    await ask("GET", f"/train-jobs/{job['id']}", one)
    rows = [("a/0.png", FoundBox((12.5, 30.0, 64.0, 64.0), 0.93)), ("a/1.png", None)]
    http.gateway.files.found_boxes(job["id"]).write_text(write_csv(rows))
    await ask("GET", f"/train-jobs/{job['id']}/boxes", f"{one}/boxes")
    await ask("GET", "/train-jobs?limit=1", "/train-jobs")
    await ask("GET", f"/train-jobs/{job['id']}/events?limit=2", f"{one}/events")
    await ask("GET", f"/train-jobs/{job['id']}/checkpoints", f"{one}/checkpoints")
    await ask("POST", f"/train-jobs/{job['id']}/publish", f"{one}/publish")
    await ask("POST", f"/train-jobs/{job['id']}/pause", f"{one}/pause")
    await ask("POST", f"/train-jobs/{job['id']}/resume", f"{one}/resume")
    await ask("POST", f"/train-jobs/{job['id']}/cancel", f"{one}/cancel")
    move(jobs, job["id"], JobStatus.CANCELLED)  # its events end
    events = await http.get(f"/train-jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
    text = events.text.split("\n\n")[0] + "\n\n"
    tour.note("GET", f"{one}/events", 200, "text/event-stream", text)
    tour.note("GET", "/webhooks/secret", 200, "application/json", {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    # poses
    form = {"data": {"category": "dog"}, "files": {"images": ("a.png", picture)}}
    await ask("POST", "/estimate", **form)
    two = [("images", ("a.png", picture)), ("images", ("b.png", b"junk"))]
    lines = await http.post("/estimate", data=form["data"], files=two, headers={"Accept": "application/jsonl"})
    for kind in ("application/jsonl", "application/x-ndjson"):
        tour.note("POST", "/estimate", 200, kind, lines.text)
    await ask("POST", "/estimate", data={"category": "dog", "format": "csv"}, files=form["files"])
    begun = (await ask("POST", "/estimate", **form, headers={"Prefer": "respond-async"})).json()
    where = f"/estimates/{begun['id']}"
    while (await http.get(where)).json()["status"] != "succeeded":
        await asyncio.sleep(0.05)
    await ask("GET", where, "/estimates/{estimate_id}")
    await ask("GET", f"{where}/result", "/estimates/{estimate_id}/result")
    await ask("GET", "/estimates")
    table = tour.answers["POST /estimate 200 text/csv"]
    tour.note("GET", "/estimates/{estimate_id}/result", 200, "text/csv", table)
    waiting = (await http.post("/estimate", **form, headers={"Prefer": "respond-async"})).json()
    stopped = await http.post(f"/estimates/{waiting['id']}/cancel")
    if stopped.status_code == 200:
        tour.note("POST", "/estimates/{estimate_id}/cancel", 200, "application/json", stopped.json())
    else:  # it was done already
        shown = {**waiting, "status": "cancelled"}
        tour.note("POST", "/estimates/{estimate_id}/cancel", 200, "application/json", shown)
    # priors
    category = "/priors/{category}"
    await ask("GET", "/priors")
    for what in ("", "/memory?bank=0", "/history", "/versions", "/keypoint-names"):
        await ask("GET", f"/priors/dog{what}", category + what.partition("?")[0])
    await ask("GET", f"/priors/dog/diff?from={OLD}&to={NEW}", f"{category}/diff")
    names = {"names": ["nose", "neck", "tail", "left paw", "right paw"]}
    any_state = {"If-Match": "*"}
    await ask("PUT", "/priors/dog/keypoint-names", f"{category}/keypoint-names", json=names, headers=any_state)
    alias = f"{category}/aliases/{{alias}}"
    await ask("PUT", "/priors/dog/aliases/champion", alias, json={"version": OLD})
    await ask("PUT", "/priors/dog/aliases/champion", alias, json={"version": NEW}, headers=any_state)
    await ask("GET", "/priors/dog/aliases", f"{category}/aliases")
    await ask("GET", "/priors/dog/aliases/champion", alias)
    pictures, _, labels = labelled(8)
    fitted = await fit(http, pictures, labels)
    tour.note("POST", f"{category}/landmarks", fitted.status_code, "application/json", fitted.json())
    await ask("GET", "/priors/dog/landmarks", f"{category}/landmarks")
    await ask("GET", "/priors/dog/landmarks/anatomy", f"{category}/landmarks/{{name}}")
    packed_version = (await http.get(f"/priors/dog/versions/{sample}/export")).content
    files = {"file": ("dog.zip", packed_version)}
    await ask("POST", "/priors/wolf/versions/import", f"{category}/versions/import", files=files)
    return tour.answers


def shape(value: Any) -> Any:
    """Return the structure of a response without its values; nullable values match anything."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "value"


def differs(one: Any, two: Any, where: str) -> str | None:
    if isinstance(one, dict) and isinstance(two, dict):
        if where.endswith(".settings"):  # a value may differ, but each must be a setting
            return f"{where}: {unknown}" if (unknown := sorted({*one, *two} - {"preset", *settings()})) else None
        if where.endswith((".metrics", ".losses", ".headers")):
            return None
        if one.keys() != two.keys():
            return f"{where}: {sorted(one.keys() ^ two.keys())}"
        return next((found for key in one if (found := differs(one[key], two[key], f"{where}.{key}"))), None)
    if isinstance(one, list) and isinstance(two, list) and one and two:
        return differs(one[0], two[0], f"{where}[0]")
    return None


async def test_examples_are_what_a_gateway_answers(
    http,
    publish,
    consumer,
    data_root,
    make_picture,
    labelled,  # noqa: F811
):
    store = VersionStore(data_root)
    install_samples(store)  # a whole version, as an import wants one
    sample = store.active("dog")
    publish("dog", OLD)
    publish("dog", NEW)
    answers = await walk(http, data_root, make_picture, labelled, sample)
    path = Path(openapi_examples.__file__).with_name(openapi_examples.ANSWERS_FILE)
    if os.environ.get("PPL_WRITE_EXAMPLES"):
        path.write_text(
            json.dumps(dict(sorted(answers.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        openapi_examples.response_examples.cache_clear()
    kept = openapi_examples.response_examples()
    assert kept.keys() == answers.keys(), kept.keys() ^ answers.keys()
    for key, example in kept.items():
        assert differs(shape(example), shape(answers[key]), key) is None


async def test_a_coco_answer_is_described_too(http, publish, consumer, make_picture, described):
    publish("dog")
    answer = await http.post(
        "/estimate", data={"category": "dog", "format": "coco"}, files={"images": ("a.png", make_picture())}
    )
    content = described["paths"]["/estimate"]["post"]["responses"]["200"]["content"]["application/json"]
    checked(described, content["schema"], answer.json(), "coco")
