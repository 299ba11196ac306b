"""A gateway on the session's real Valkey, and a consumer that answers its batches in place of a worker."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis.asyncio
from fastapi import FastAPI
from PIL import Image

from model.config import PPLConfig
from model.network.architecture import expected_tensors
from service.contract import routing
from service.contract.errors import PixelsExpired, PPLError
from service.contract.messages import BatchReply, BatchRequest, WorkerHeartbeat
from service.contract.versions.store import VersionStore
from service.gateway.app import create_app
from service.gateway.gateway import Member
from service.runtime.concurrency import cancel_tasks
from service.runtime.settings import Settings
from tests.support.cli_process import CommandLine

NUM_KEYPOINTS = 5


class Consumer:
    """Takes batches off the queue as a worker does, and says where the brightest spot of each picture is.

    Keypoint 0 is the centre of gravity of what is brighter than mid-grey, the others stand around it.

    Attributes:
        batches: every request taken.
        gate: batches wait while it is closed.
        error: the answer to every batch, where set.
    """

    def __init__(self, url: str, spoil: Callable[[BatchReply], Any] | None = None) -> None:
        self._spoil = spoil
        self._redis = redis.asyncio.Redis.from_url(url)
        self.batches: list[BatchRequest] = []
        self.pixels: list[np.ndarray] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: PPLError | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.beat()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            await cancel_tasks([self._task])
        await self._redis.aclose()

    async def beat(self, kind: routing.Kind = "inference", worker_id: str = "w1", metrics: str = "") -> None:
        """Write a heartbeat."""
        message = WorkerHeartbeat(
            kind=kind, id=worker_id, pid=1, host="here", started_at=time.time(), device="cpu", metrics=metrics
        )
        await self._redis.set(routing.worker_key(kind, worker_id), message.model_dump_json(), ex=60)
        await self._redis.zadd(routing.workers_key(kind), {worker_id: time.time()})

    async def _run(self) -> None:
        while True:
            popped = await self._redis.brpop([*map(routing.batch_queue_key, routing.PRIORITIES)], timeout=1)
            if popped is None:
                continue
            (message,), _, _ = json.loads(base64.b64decode(json.loads(popped[1])["body"]))
            request = BatchRequest.parse(message)
            self.batches.append(request)
            await self.gate.wait()
            await self._reply(request)

    async def _reply(self, request: BatchRequest) -> None:
        data = await self._redis.get(routing.pixels_key(request.batch_id))
        if data is None:  # its requests have timed out
            reply = BatchReply(batch_id=request.batch_id, error=PixelsExpired())
            await self._redis.rpush(request.reply_to, reply.pack())
            return
        assert len(data) == request.num_bytes
        images = np.frombuffer(data, np.uint8).reshape(request.count, request.side, request.side, 3)
        self.pixels.append(images)
        reply = BatchReply(batch_id=request.batch_id, error=self.error)
        if self.error is None:
            reply = answer(request, images)
        if self._spoil:
            self._spoil(reply)
        async with self._redis.pipeline() as pipe:  # both at once, as the worker does it
            pipe.rpush(request.reply_to, reply.pack())
            pipe.unlink(routing.pixels_key(request.batch_id))
            await pipe.execute()


def answer(request: BatchRequest, images: np.ndarray) -> BatchReply:
    """Return the reply of a model that finds bright spots."""
    side = request.side
    mass = np.clip(images.max(axis=3).astype(np.float64) - 128, 0, None) + 1e-9
    grid = (2 * np.arange(side) + 1) / side - 1
    total = mass.sum(axis=(1, 2))
    spot = np.stack([(mass.sum(axis=1) * grid).sum(1) / total, (mass.sum(axis=2) * grid).sum(1) / total], axis=1)
    around = np.array([[0, 0], [0.2, 0], [0, 0.2], [-0.2, 0], [0, -0.2]])
    keypoints = (spot[:, None] + around).astype(np.float32)
    trajectory = np.repeat(keypoints[:, None], request.refine_steps + 1, axis=1)
    trajectory += 0.01 * np.arange(request.refine_steps, -1, -1, dtype=np.float32)[None, :, None, None]
    # the number of the step as grey, on half the side
    grey = 10 * np.arange(request.refine_steps + 1, dtype=np.uint8)
    rebuilt = np.broadcast_to(grey[None, :, None, None, None], (request.count, len(grey), side // 2, side // 2, 3))
    return BatchReply(
        batch_id=request.batch_id,
        keypoints=keypoints,
        scores=np.full((request.count, NUM_KEYPOINTS), 0.75, np.float32),
        trajectory=trajectory,
        link_map=np.where(mass > 10, 255, 0).astype(np.uint8) if request.link_map else None,
        surprises=np.full(request.count, 0.5, np.float32),
        presences=np.full(request.count, 0.9, np.float32),
        codes=np.tile(np.uint16([1, 0, 1]), (request.count, 1)) if request.codes else None,
        reconstructions=rebuilt if request.reconstructions else None,
        timing_ms={"model": 3.0},
    )


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    """Return a function that encodes black pictures with a white disc; its position is a fraction of the size."""

    def make(width: int = 96, height: int = 64, where: tuple[float, float] = (0.5, 0.5), **options: Any) -> bytes:
        ys, xs = np.mgrid[:height, :width]
        near = np.hypot(xs - where[0] * width, ys - where[1] * height) <= 0.12 * min(width, height)
        file = io.BytesIO()
        Image.fromarray(np.where(near[..., None], np.uint8([255] * 3), np.uint8([0] * 3))).save(
            file, options.pop("format", "PNG"), **options
        )
        return file.getvalue()

    return make


@pytest.fixture
def publish(data_root: Path) -> Callable[..., str]:
    """Return a function that publishes versions below the data root, as a training worker does."""
    from safetensors.numpy import save_file

    store = VersionStore(data_root)

    def put(category: str = "dog", version: str = "20260101T000000-abc123", side: int = 64, method: str = "ppl") -> str:
        banks, size, dim = (3, 2, 8) if method == "ppl" else (0, 0, 0)
        codebook = np.arange(banks * size * dim, dtype=np.float32).reshape(banks, size, dim) / 7
        keypoints = [[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]]
        links = [
            {"i": i, "j": j, "weight": 1.0 / (1 + i + j)}
            for i in range(NUM_KEYPOINTS)
            for j in range(i + 1, NUM_KEYPOINTS)
        ]
        matrix = np.zeros((NUM_KEYPOINTS, NUM_KEYPOINTS))
        for link in links:
            matrix[link["i"], link["j"]] = matrix[link["j"], link["i"]] = link["weight"]
        config = PPLConfig(image_size=side, num_keypoints=NUM_KEYPOINTS, method=method).to_dict()
        weights = [link["weight"] for link in links]
        poses = [None] * 2 if method == "autolink" else [[[0.0, 0.0]] * NUM_KEYPOINTS, keypoints]
        documents = {
            "version.json": {
                "format": 1,
                "category": category,
                "version": version,
                "job_id": "0123456789abc123",
                "created_at": "2026-01-01T00:00:00.000Z",
                "preset": "compact",
                "settings": config,
                "training": {"images": 99, "skipped": 1, "steps": 10, "seconds": 1.5, "device": "cpu", "losses": {}},
                "files": {},
            },
            "prior.json": {
                "num_keypoints": NUM_KEYPOINTS,
                "keypoint_names": [f"keypoint_{i}" for i in range(NUM_KEYPOINTS)],
                "keypoint_prior": keypoints,
                "connectivity_prior": matrix.tolist(),
                "links": links,
                "link_width": 1e-3,
                "keypoint_prior_source": "memory" if method == "ppl" else "mean_pose",
            },
            "history.json": {
                "format": 1,
                "snapshots": [
                    {"step": step, "keypoint_prior": pose, "link_weights": weights}
                    for step, pose in zip((0, 10), poses, strict=True)
                ],
            },
            "memory.json": {
                "num_banks": banks,
                "bank_size": size,
                "token_dim": dim,
                "use_counts": [[1.0] * size] * banks,
                "prototypes": [{"keypoints": keypoints, "codes": [0, 1, 0], "count": 60}] if banks else [],
            },
            "config.json": config,
        }
        with store.staging(category, version) as folder:
            for name, document in documents.items():
                (folder / name).write_text(json.dumps(document))
            decoder = {
                name: 0.1 * np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
                for name, (_, shape) in expected_tensors(PPLConfig(num_keypoints=5, num_banks=3, token_dim=8)).items()
                if name.startswith("memory.decoder.")
            }
            save_file({"memory.codebook": codebook, **decoder} if banks else {}, folder / "weights.safetensors")
            store.publish(folder, category, version)
        store.activate(category, version)
        return version

    return put


@pytest.fixture
def make_settings(
    redis_url: str, redis_client: Any, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Settings]:
    """Settings on an empty Redis and an empty data root, of gateways that soon see what waits in the background."""
    monkeypatch.setattr("service.gateway.gateway._POLL_EVERY_S", 0.1)

    def make(**changes: Any) -> Settings:
        return Settings(**{"redis_url": redis_url, "data_root": data_root, "estimate_timeout_s": 10.0, **changes})

    return make


@pytest.fixture
async def serve(make_settings: Callable[..., Settings]) -> AsyncIterator[Callable[..., Any]]:
    """Starts gateways in this process; each gives an HTTP client whose ``app`` is the application."""
    running: list[tuple[Any, httpx.AsyncClient]] = []

    async def start(member: Member | None = None, **changes: Any) -> httpx.AsyncClient:
        app: FastAPI = create_app(make_settings(**changes), member)
        lifespan = app.router.lifespan_context(app)
        await lifespan.__aenter__()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        client.gateway = app.state.gateway  # type: ignore[attr-defined]
        client.app = app  # type: ignore[attr-defined]
        running.append((lifespan, client))
        return client

    yield start
    for lifespan, client in running:
        await client.aclose()
        await lifespan.__aexit__(None, None, None)


@pytest.fixture
async def http(serve: Callable[..., Any]) -> httpx.AsyncClient:
    """Return a client of a gateway with the usual settings."""
    return await serve()


@pytest.fixture
async def make_consumer(redis_url: str, redis_client: Any) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts consumers, which answer batches and have a heartbeat."""
    started: list[Consumer] = []

    async def make(spoil: Callable[[BatchReply], Any] | None = None, url: str = redis_url) -> Consumer:
        consumer = Consumer(url, spoil)
        started.append(consumer)
        await consumer.start()
        return consumer

    yield make
    for consumer in started:
        await consumer.stop()


@pytest.fixture
async def consumer(make_consumer: Callable[..., Any]) -> Consumer:
    """Return a consumer that answers at once."""
    consumer: Consumer = await make_consumer()
    return consumer


@pytest.fixture(scope="session")
def command_line() -> Iterator[CommandLine]:
    """Return a runner of `ppl` in processes that share their imports."""
    commands = CommandLine()
    yield commands
    commands.close()


@pytest.fixture
def no_trace(data_root: Path, redis_client: Any) -> Callable[[], None]:
    """Return a check that a refused request left no file and no new Redis key."""
    files, keys = sorted(data_root.rglob("*")), set(redis_client.keys())

    parents = [data_root / name for name in ("jobs", "datasets", "categories")]  # may remain, empty

    def check() -> None:
        assert [path for path in sorted(data_root.rglob("*")) if path not in files and path not in parents] == []
        assert {
            key for key in redis_client.scan_iter() if not key.startswith((b"ppl:reconcile", b"ppl:gateways"))
        } - keys == set()

    return check


@pytest.fixture
def problem() -> Callable[..., dict[str, Any]]:
    """Return a function that checks that a response is a problem document and returns it."""

    def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
        assert response.headers["content-type"] == "application/problem+json", response.text
        document: dict[str, Any] = response.json()
        assert (response.status_code, document["code"]) == (status, code), document
        assert document["status"] == status
        assert document["title"]
        assert document["type"] == f"urn:ppl:problem:{code}"
        assert document["detail"]
        assert "Traceback" not in response.text
        assert "/work" not in response.text
        return document

    return check


RESPOND_ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def send(http, make_picture):
    """Return a function that starts a background estimate, of three pictures unless given."""

    async def post(files=None, client=None, headers=RESPOND_ASYNC, **fields: str):
        files = [("images", (f"{n}.png", make_picture())) for n in range(3)] if files is None else files
        return await (client or http).post(
            "/estimate", data={"category": "dog", **fields}, files=files, headers=headers
        )

    return post


@pytest.fixture
def serve_alone(http, serve):
    """Serves the one gateway that works on what waits; that of ``http``, on the same files, leaves it to that one."""
    http.gateway.estimates.list_waiting = list
    return serve
