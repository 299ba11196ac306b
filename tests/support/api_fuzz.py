"""Hooks of schemathesis for our API: existing values, readable files, and an additional check.

Loaded by ``st`` as its module of hooks; ``PPL_FUZZ_URL`` is the address of the server.
"""

from __future__ import annotations

import io
import json
import os
import random
import time
import zipfile
import zlib
from typing import Any

import httpx
import schemathesis
from PIL import Image

_URL = os.environ["PPL_FUZZ_URL"]
_REFRESH_S = 5.0
# a job that is begun must not hold up the rest
_SMALL = {"steps": 2, "image_size": 32, "perceptual_size": 32, "base_width": 8, "num_keypoints": 4, "batch_size": 8}
_SMALL |= {"num_banks": 4, "bank_size": 4, "token_dim": 16, "memory_width": 16, "mask_grid": 4, "features": "none"}

_known: dict[str, list[str]] = {}
_looked_at = 0.0


def _picture(seed: int) -> bytes:
    file = io.BytesIO()
    colour = tuple(random.Random(seed).randrange(256) for _ in range(3))
    Image.new("RGB", (40, 32), colour).save(file, "PNG")
    return file.getvalue()


def _archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for seed in range(9):
            archive.writestr(f"{seed}.png", _picture(seed))
    return file.getvalue()


def _existing() -> dict[str, list[str]]:
    """Return the names of the server's resources by the parameter that takes them."""
    global _looked_at
    if time.monotonic() - _looked_at > _REFRESH_S:
        _looked_at = time.monotonic()
        with httpx.Client(base_url=_URL, timeout=10, trust_env=False) as client:
            for parameter, path in (
                ("job_id", "/train-jobs"),
                ("dataset_id", "/datasets"),
                ("estimate_id", "/estimates"),
            ):
                _known[parameter] = [item["id"] for item in client.get(path).json()["items"]]
            versions = client.get("/priors/dog/versions").json()["items"]
            _known["version"] = [item["version"] for item in versions] + ["active"]
            _known["category"] = ["dog"]
            _known["name"], _known["alias"] = ["anatomy"], ["active", "champion"]
            _known["from"] = _known["to"] = _known["version"]
    return _known


def _chosen(value: Any, count: int) -> int:
    """Choose one of `count`, always the same for a value, so that a failure can be repeated."""
    return zlib.crc32(repr(value).encode()) % count


def _with_existing(values: dict[str, Any] | None) -> dict[str, Any] | None:
    for name, value in (values or {}).items():
        found = _existing().get(name)
        if found and _chosen(value, 3):
            values[name] = found[_chosen(value, len(found))]  # type: ignore[index]
    return values


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Let two of three requests name something that exists."""
    return _with_existing(path_parameters)


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Let two of three queries name something that exists."""
    return _with_existing(query)


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    """A stream of events would not end while its job goes on, and names of requests must be such."""
    if headers and _chosen(headers, 3):
        headers.pop("Last-Event-ID", None)
    return headers


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Two in three forms are whole ones, with one field of those that were made up."""
    whole = _whole(case.path, _chosen(case.body, 1000)) if case.media_type == "multipart/form-data" else None
    if whole is None or not isinstance(case.body, dict) or not _chosen(case.body, 3):
        return
    others = sorted(case.body.keys() - whole.keys() - _NEVER)
    if others and _chosen(case.body, 4):
        name = others[_chosen(case.body, len(others))]
        whole[name] = case.body[name]
    case.body = whole


# a webhook would go out, and a name of something else is another request
_NEVER = {"webhook_url", "continue_from", "prior", "prior_from", "dataset", "video", "archive"}


def _whole(path: str, seed: int) -> dict[str, Any] | None:
    """Return a valid form for an operation that takes files."""
    if path == "/train-jobs":
        return {"category": "dog", "archive": _archive(), **_SMALL}
    if path == "/datasets":
        return {"archive": _archive()}
    if path == "/estimate":
        return {"category": "dog", "images": [_picture(seed + n) for n in range(1 + seed % 3)]}
    if path.endswith("/landmarks"):
        labels = "image,keypoint,x,y\n" + "".join(f"images[{n}],nose,{10 + n},{12 + n % 3}\n" for n in range(8))
        return {"name": f"set{seed % 40}", "images": [_picture(n) for n in range(8)], "labels": labels.encode()}
    return None


@schemathesis.check
def errors_are_problems(ctx: Any, response: Any, case: Any) -> None:
    """Every refusal is a problem document with a code and a detail, and shows nothing of the server's inside."""
    assert response.headers.get("x-request-id"), "no X-Request-ID"
    if response.status_code < 400:
        return
    kind = response.headers.get("content-type", [""])
    kind = kind[0] if isinstance(kind, list) else kind
    assert kind == "application/problem+json", f"an error of the type {kind}"
    document = json.loads(response.content)
    assert document["status"] == response.status_code
    assert document["code"]
    assert document["detail"]
    assert "Traceback" not in response.text
