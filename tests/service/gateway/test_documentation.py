"""What /docs says is true: forms, shapes, problems, and examples that work when pasted."""

from __future__ import annotations

import io
import json
import re
import shlex
import zipfile

import pytest

from model.config import settings
from service.contract.jobs.store import JobStatus
from service.estimates.request import INCLUDABLE


@pytest.fixture
async def described(http):
    response = await http.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def operations(described):
    return [
        (method, path, operation) for path, item in described["paths"].items() for method, operation in item.items()
    ]


async def test_page_is_served(http):
    assert "swagger" in (await http.get("/docs")).text.lower()


async def test_every_operation_is_described_and_declares_problems(described):
    expected = {
        "/train-jobs",
        "/train-jobs/{job_id}",
        "/train-jobs/{job_id}/cancel",
        "/train-jobs/{job_id}/pause",
        "/train-jobs/{job_id}/resume",
        "/train-jobs/{job_id}/events",
        "/train-jobs/{job_id}/checkpoints",
        "/train-jobs/{job_id}/preview",
        "/train-jobs/{job_id}/boxes",
        "/train-jobs/{job_id}/publish",
        "/datasets",
        "/datasets/{dataset_id}",
        "/datasets/{dataset_id}/contact-sheet",
        "/datasets/{dataset_id}/pictures",
        "/datasets/{dataset_id}/pictures/{number}",
        "/datasets/{dataset_id}/frame",
        "/estimate",
        "/priors",
        "/priors/{category}",
        "/priors/{category}/link-map",
        "/priors/{category}/memory",
        "/priors/{category}/history",
        "/priors/{category}/versions",
        "/priors/{category}/versions/{version}",
        "/priors/{category}/versions/{version}/export",
        "/priors/{category}/versions/import",
        "/priors/{category}/diff",
        "/priors/{category}/keypoint-names",
        "/priors/{category}/landmarks",
        "/priors/{category}/landmarks/{name}",
        "/priors/{category}/aliases",
        "/priors/{category}/aliases/{alias}",
        "/estimates",
        "/estimates/{estimate_id}",
        "/estimates/{estimate_id}/cancel",
        "/estimates/{estimate_id}/result",
        "/estimates/{estimate_id}/raw",
        "/estimates/{estimate_id}/overlay",
        "/webhooks/secret",
        "/livez",
        "/readyz",
        "/metrics",
    }
    assert set(described["paths"]) == expected
    for method, path, operation in operations(described):
        assert operation["summary"], path
        assert len(operation["description"]) > 20, path
        assert operation["tags"], path
        for status, response in operation["responses"].items():
            if status == "default" or int(status) >= 400:
                content = response["content"]
                assert set(content) == {"application/problem+json"}, (method, path, status)
                assert content["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert set(described["components"]["schemas"]["Problem"]["properties"]) == {
        "type",
        "title",
        "status",
        "detail",
        "code",
        "request_id",
    }


async def test_every_reference_leads_somewhere(described):
    names = re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described))
    assert set(names) <= set(described["components"]["schemas"])
    assert "HTTPValidationError" not in described["components"]["schemas"]


async def test_every_setting_stands_in_the_form_with_its_range(described):
    content = described["paths"]["/train-jobs"]["post"]["requestBody"]["content"]
    for media in ("multipart/form-data", "application/json"):
        properties = content[media]["schema"]["properties"]
        for name, (kind, allowed) in settings().items():
            assert allowed.description in properties[name]["description"]
            if kind in ("int", "float"):
                assert (properties[name]["minimum"], properties[name]["maximum"]) == (allowed.low, allowed.high)
            if allowed.choices:
                assert properties[name]["enum"] == list(allowed.choices)
    assert content["multipart/form-data"]["schema"]["properties"]["archive"]["format"] == "binary"
    for media, source in (("multipart/form-data", "archive"), ("application/json", "folder")):
        schema = content[media]["schema"]
        assert schema["required"] == ["category"]
        assert schema["oneOf"] == [{"required": [source]}, {"required": ["dataset"]}]


async def test_estimate_form_is_described(described):
    schema = described["paths"]["/estimate"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {
        "category",
        "images",
        "version",
        "refine_steps",
        "smooth",
        "max_gap",
        "max_animals",
        "include",
        "boxes",
        "locate",
        "align",
        "format",
        "landmarks",
        "video",
        "every",
    }
    assert schema["properties"]["images"]["maxItems"] == 64
    assert schema["properties"]["refine_steps"]["maximum"] == 10
    assert all(word in schema["properties"]["include"]["description"] for word in INCLUDABLE)


async def test_meaning_of_a_score_is_documented(described):
    score = described["components"]["schemas"]["Keypoint"]["properties"]["score"]
    assert (score["minimum"], score["maximum"]) == (0, 1)
    assert "share of the keypoint's attention" in score["description"]
    assert "hidden" in score["description"]


async def test_job_has_the_agreed_members(described):
    schemas = described["components"]["schemas"]
    assert list(schemas["Job"]["properties"]) == [
        "id",
        "category",
        "status",
        "created_at",
        "started_at",
        "finished_at",
        "progress",
        "metrics",
        "version",
        "error",
        "settings",
        "evaluation",
        "quality",
        "activate",
        "dataset",
        "created_by",
        "queue_position",
        "webhook",
        "continued_from",
        "checkpoint_versions",
        "warnings",
    ]
    assert set(schemas["Progress"]["properties"]) == {"step", "total_steps", "fraction", "eta_s", "stage"}
    assert schemas["JobStatus"]["enum"] == [str(status) for status in JobStatus]


def curl_commands(described) -> list[str]:
    texts = [described["info"]["description"], *(operation["description"] for _, _, operation in operations(described))]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip().startswith("curl ")]


async def paste(http, command: str, files: dict[str, bytes]):
    """Send what a curl command would."""
    words = shlex.split(command)[1:]
    form, content, url, method = [], None, None, "POST"
    while words:
        word = words.pop(0)
        if word == "-F":
            name, _, value = words.pop(0).partition("=")
            form.append((name, (value[1:], files[value[1:]]) if value.startswith("@") else (None, value)))
        elif word == "-X":
            method = words.pop(0)
        elif word == "--json":
            content = words.pop(0)
        else:
            url = word
    path = url.removeprefix("http://localhost")
    assert path != url
    if content is not None:
        return await http.request(method, path, content=content, headers={"content-type": "application/json"})
    return await (http.post(path, files=form) if form else http.get(path))


async def test_examples_work_when_pasted(http, described, consumer, publish, make_picture, data_root):
    publish("dog")
    folder = data_root / "imports" / "dog"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(make_picture())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", make_picture())
    photo = make_picture(format="JPEG")
    files = {"pictures.zip": packed.getvalue(), "photo.jpg": photo, "one.jpg": photo, "two.png": make_picture()}
    commands = [line for line in curl_commands(described) if "JOB" not in line]
    assert len(commands) >= 6
    for command in commands:
        response = await paste(http, command, files)
        assert response.status_code in (200, 201, 202), (command, response.text)


async def test_json_example_works(http, described, data_root):
    folder = data_root / "imports" / "dog"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"x")
    content = described["paths"]["/train-jobs"]["post"]["requestBody"]["content"]["application/json"]
    (example,) = content["examples"].values()
    assert "first make the folder imports/dog" in example["description"]
    assert (await http.post("/train-jobs", json=example["value"])).status_code == 202


async def test_examples_carry_the_address_that_was_asked(serve):
    http = await serve(api_keys=True)  # which may be asked for by any name
    asked = await http.get("/openapi.json", headers={"host": "poses.example:9123"})
    assert "curl http://poses.example:9123/train-jobs" in asked.json()["info"]["description"]
    assert "127.0.0.1:8000" not in asked.text


async def test_address_that_could_be_a_command_is_not_put_into_examples(serve):
    http = await serve(api_keys=True)
    asked = await http.get("/openapi.json", headers={"host": "a;$(reboot)"})
    assert "reboot" not in asked.text
