"""A small HTTP server with the API's schemas, for tests of the client and the command line."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

TIMING = {"decode": 1.0, "queue": 1.0, "model": 3.0, "total": 5.0}


def png(side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


def job_json(job_id: str = "0a1b2c3d4e5f", status: str = "queued", **changes: Any) -> dict[str, Any]:
    return {
        "id": job_id,
        "category": "bird",
        "status": status,
        "created_at": "2026-11-23T06:00:00.000Z",
        "started_at": None,
        "finished_at": None,
        "progress": {"step": 0, "total_steps": 20, "fraction": 0.0, "eta_s": None},
        "metrics": {},
        "version": None,
        "error": None,
        "settings": {"preset": "compact", "steps": 20},
        **changes,
    }


def problem(status: int, code: str, detail: str, **headers: str) -> JSONResponse:
    body = {"type": "about:blank", "title": code.replace("_", " "), "status": status, "detail": detail, "code": code}
    return JSONResponse(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


class ApiDouble:
    """An app that records requests and gives configured answers."""

    def __init__(self) -> None:
        self.forms: list[dict[str, list[Any]]] = []
        self.queries: list[dict[str, str]] = []
        self.job_answers: list[Any] = [job_json(status="succeeded", version="20261123T060000-4e5f")]
        self.train_answer: Any = job_json(status="validating")
        self.estimate_answer: Any = None
        self.cancelled: list[str] = []
        self.deleted: list[str] = []
        self.url = ""
        self.app = FastAPI(openapi_url=None)
        self._route()

    def _route(self) -> None:
        app = self.app

        @app.post("/train-jobs")
        async def train(request: Request) -> Any:
            await self._note(request)
            if isinstance(self.train_answer, Response):
                return self.train_answer
            return JSONResponse(self.train_answer, 202)

        @app.get("/train-jobs")
        async def jobs(cursor: str | None = None) -> Any:
            if cursor is None:
                return {"items": [job_json("a" * 12, "running")], "next_cursor": "more"}
            return {"items": [job_json("b" * 12, "succeeded", version="v1")], "next_cursor": None}

        @app.get("/train-jobs/{job_id}")
        async def job(job_id: str) -> Any:
            return self.job_answers.pop(0) if len(self.job_answers) > 1 else self.job_answers[0]

        @app.post("/train-jobs/{job_id}/cancel")
        async def cancel(job_id: str) -> Any:
            self.cancelled.append(job_id)
            return job_json(job_id, "cancelled")

        @app.delete("/train-jobs/{job_id}")
        async def delete(job_id: str) -> Response:
            self.deleted.append(job_id)
            return Response(status_code=204)

        @app.post("/estimate")
        async def estimate(request: Request) -> Any:
            form = await self._note(request)
            if self.estimate_answer is not None:
                return self.estimate_answer
            images = [self._image(index, "overlay" in str(form.get("include"))) for index in range(len(form["images"]))]
            return {"category": form["category"][0], "version": "v1", "images": images, "timing_ms": TIMING}

        @app.get("/priors")
        async def priors() -> Any:
            return {"items": [{"category": "bird", "version": "v1", "num_versions": 1}], "next_cursor": None}

        @app.get("/priors/{category}")
        async def prior(category: str, request: Request) -> Any:
            self.queries.append(dict(request.query_params))
            if category != "bird":
                return problem(404, "unknown_category", f"no category '{category}'; GET /priors lists them")
            return {
                "category": "bird",
                "version": "v1",
                "num_keypoints": 2,
                "keypoint_names": None,
                "keypoint_prior": [[-0.5, 0.25], [0.5, 0.0]],
                "connectivity_prior": [[0.0, 0.7], [0.7, 0.0]],
                "links": [{"i": 0, "j": 1, "weight": 0.7}],
                "link_width": 0.001,
                "settings": {"steps": 20},
                "training": {"images": 40, "steps": 20, "seconds": 12.5, "losses": {"total": 1.0}},
            }

        @app.get("/priors/{category}/memory")
        async def memory(category: str) -> Any:
            return {
                "category": "bird",
                "version": "v1",
                "num_banks": 1,
                "bank_size": 2,
                "token_dim": 3,
                "use_counts": [[3, 4]],
                "prototypes": [{"keypoints": [[0, 0], [1, 1]], "codes": [0], "count": 7}],
            }

        @app.get("/priors/{category}/history")
        async def history(category: str) -> Any:
            snapshots = [
                {"step": step, "keypoint_prior": [[-0.5, 0.25], [x, 0.0]], "link_weights": [0.1 + x]}
                for step, x in ((0, 0.0), (20, 0.5))
            ]
            return {"category": "bird", "version": "v1", "snapshots": snapshots}

        @app.get("/priors/{category}/link-map")
        async def link_map(category: str) -> Response:
            return Response(png(), media_type="image/png")

    async def _note(self, request: Request) -> dict[str, list[Any]]:
        fields: dict[str, list[Any]] = {}
        async with request.form() as form:
            for name, value in form.multi_items():
                content = value if isinstance(value, str) else (value.filename, await value.read())
                fields.setdefault(name, []).append(content)
        self.forms.append(fields)
        return fields

    def _image(self, index: int, overlay: bool) -> dict[str, Any]:
        image = {
            "index": index,
            "width": 64,
            "height": 48,
            "keypoints": [{"id": 0, "x": 10.5, "y": 20.25, "score": 0.9}, {"id": 1, "x": 30, "y": 40, "score": 0.5}],
            "links": [{"i": 0, "j": 1, "weight": 0.7}],
        }
        if overlay:
            image["overlay"] = "data:image/png;base64," + base64.b64encode(png()).decode()
        return image


@contextmanager
def serving(api: ApiDouble) -> Iterator[ApiDouble]:
    """Serve on a free port until the context ends."""
    config = uvicorn.Config(api.app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    api.url = f"http://127.0.0.1:{port}"
    try:
        yield api
    finally:
        server.should_exit = True
        thread.join(10)
