"""Examples of requests, responses and errors in the OpenAPI document.

The responses in ``openapi_examples.json`` were recorded from a gateway; a test compares their shape with a new one.
Requests and parameters are defined here.
"""

from __future__ import annotations

import http
import json
from functools import cache
from importlib.resources import files
from typing import Any

from service.http.problems import MEDIA_TYPE

ANSWERS_FILE = "openapi_examples.json"
_VERSION = "20260101T000000-abc123"
_ID = "019ac1b2c3d4e5f60718293a"

PARAMETERS: dict[str, tuple[str, Any]] = {
    "job_id": ("id of the job", "019ac1b2c3d4e5f6a7b8c9"),
    "dataset_id": ("id of the dataset", _ID),
    "estimate_id": ("id of the estimate", _ID),
    "category": ("name of the category: a-z, 0-9, - and _", "dog"),
    "version": ("a version of the category, or an alias of one", _VERSION),
    "alias": ("name of the alias", "champion"),
    "name": ("name of the set of landmarks", "anatomy"),
    "cursor": ("`next_cursor` of the page before", None),
    "status": ("only jobs of this status", "running"),
    "limit": ("items in a page", 50),
    "from": ("the one version", "champion"),
    "to": ("the other version", "active"),
    "Idempotency-Key": ("names the request", "b8f3c1de-4c3b-4c58-9a77-2d5f1c0e9a11"),
    "Last-Event-ID": ("id of the last event that was seen", "12"),
    "If-Match": ("the ETag that GET gave", '"20261123T064501-1f3a9c"'),
}

_FORM = "multipart/form-data"
_JSON = "application/json"
REQUESTS: dict[tuple[str, str, str], dict[str, Any]] = {
    ("POST", "/train-jobs", _FORM): {
        "category": "dog",
        "archive": "pictures.zip",
        "preset": "compact",
        "steps": 2000,
        "webhook_url": "https://example.org/hooks/ppl",
    },
    ("POST", "/train-jobs", _JSON): {"category": "dog", "folder": "imports/dog", "preset": "compact", "steps": 2000},
    ("POST", "/datasets", _FORM): {"archive": "pictures.zip", "name": "garden"},
    ("POST", "/estimate", _FORM): {"category": "dog", "images": ["photo.jpg"], "refine_steps": 1, "include": "overlay"},
    ("PUT", "/priors/{category}/keypoint-names", _JSON): {"names": ["nose", "neck", "tail", "left paw", "right paw"]},
    ("POST", "/priors/{category}/landmarks", _FORM): {
        "name": "anatomy",
        "images": [f"{number}.jpg" for number in range(5)],
        "labels": "labels.csv",
    },
    ("POST", "/priors/{category}/versions/import", _FORM): {"file": "dog.zip", "activate": False},
    ("PUT", "/priors/{category}/aliases/{alias}", _JSON): {"version": _VERSION},
}

# error codes in examples: of a status where nothing else is said, and of operations that contain a part
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "unknown_category",
    408: "bad_request",
    409: "conflict",
    412: "precondition_failed",
    413: "body_too_large",
    415: "bad_request",
    422: "bad_request",
    428: "precondition_required",
    429: "rate_exceeded",
    500: "internal",
    503: "redis_unavailable",
    504: "timeout",
    507: "disk_full",
}
_SPECIAL_CODES = (  # the first match counts
    (400, "/priors/{category}", "bad_category_name"),
    (404, "preview", "no_preview"),
    (404, "/boxes", "no_boxes"),
    (404, "{job_id}", "unknown_job"),
    (404, "pictures/{number}", "unknown_picture"),
    (404, "{dataset_id}", "unknown_dataset"),
    (404, "{estimate_id}", "unknown_estimate"),
    (404, "landmarks/{name}", "unknown_landmarks"),
    (404, "{alias}", "unknown_alias"),
    (404, "{version}", "unknown_version"),
    (404, "history", "no_history"),
    (404, "train-jobs", "unknown_dataset"),
    (409, "DELETE /train-jobs", "job_not_ended"),
    (409, "{job_id}", "job_not_active"),
    (409, "DELETE /datasets", "dataset_in_use"),
    (409, "contact-sheet", "dataset_not_ready"),
    (409, "train-jobs", "dataset_not_ready"),
    (409, "import", "version_exists"),
    (409, "POST /priors/{category}/landmarks", "name_taken"),
    (409, "versions", "version_in_use"),
    (422, "POST /train-jobs", "bad_setting"),
    (422, "POST /estimate", "bad_boxes"),
    (422, "PUT /priors/{category}/keypoint-names", "bad_keypoint_names"),
    (422, "POST /priors/{category}/landmarks", "bad_labels"),
    (422, "import", "bad_version_file"),
    (422, "POST /datasets", "bad_archive"),
    (415, "pictures/{number}", "not_an_image"),
    (429, "POST /estimate", "queue_full"),
    (429, "POST /train-jobs", "too_many_jobs"),
    (503, "readyz", "unavailable"),
    (503, "POST /estimate", "worker_unavailable"),
    (507, "POST /datasets", "datasets_full"),
)
_DETAILS = {
    401: "the request has no API key; send one as 'Authorization: Bearer KEY'",
    403: "the API key 3f9c1a7be0d2 (lab) has the scope read; this needs train",
    429: "more than 100 requests a second came from this caller; send them more slowly",
    500: "an unexpected error of the server; its log has the details",
    503: "the queue's server (Redis) does not answer; nothing was lost, send the request again in a moment",
}


@cache
def response_examples() -> dict[str, Any]:
    """Return examples of responses by ``METHOD PATH STATUS MEDIA-TYPE``."""
    found: dict[str, Any] = json.loads(files(__package__).joinpath(ANSWERS_FILE).read_text(encoding="utf-8"))
    return found


def add_examples(operation: dict[str, Any], path: str, method: str) -> None:
    """Add examples, and descriptions of parameters, to an operation of an OpenAPI document."""
    for parameter in operation.get("parameters", ()):
        described, example = PARAMETERS.get(parameter["name"], ("", None))
        parameter.setdefault("description", described)
        if example is not None and not parameter["schema"].get("examples"):
            parameter["schema"]["examples"] = [example]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        if (method, path, kind) in REQUESTS and "examples" not in content:
            content["example"] = REQUESTS[method, path, kind]
    for status, response in operation["responses"].items():
        for kind, content in response.get("content", {}).items():
            key = f"{method} {path} {status} {kind}"
            if kind == MEDIA_TYPE and status.isdigit():
                content["example"] = _problem(method, path, int(status))
            elif key in response_examples():
                content["example"] = response_examples()[key]


def _problem(method: str, path: str, status: int) -> dict[str, Any]:
    this = f"{method} {path}"
    special = (code for of, part, code in _SPECIAL_CODES if of == status and part in this)
    code = next(special, _CODES[status])
    phrase = http.HTTPStatus(status).phrase
    return {
        "type": f"urn:ppl:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": _DETAILS.get(status, f"what came, what was expected, and what to do ({phrase.lower()})"),
        "code": code,
        "request_id": "9f2c31d07ab4e6c8",
    }
