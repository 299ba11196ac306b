"""What releases before left is read: data roots, a bucket, and the messages between gateway and worker.

Fixtures are by make_fixture.py: `0.1.0` by the release of that name (5a20725), `before-rooms` by b6c7681, and `bucket`
by the first state with object stores, for the releases to come.
"""

from __future__ import annotations

import base64
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from model.predictor import Predictor
from service.access.keys import KeyStore, Scope
from service.contract import routing
from service.contract.errors import ContractMismatch
from service.contract.messages import BatchReply, BatchRequest, WorkerHeartbeat
from service.contract.versions.shared import open_versions
from service.runtime.settings import Settings
from service.stack.valkey import EmbeddedValkey
from tests.support.live_gateway import live_gateway
from worker.inference import InferenceEngine, ResidentModels
from worker.jobs import Stop
from worker.metrics import InferenceMetrics

FOLDER = Path(__file__).parent
RELEASES = ("0.1.0", "before-rooms")


def unpack(name: str, folder: Path) -> dict[str, Any]:
    """Unpack a fixture and return what its release showed of it."""
    with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return json.loads((folder / "seen.json").read_text())


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield where a document of today lacks something or says something else; it may say more."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name, value in before.items():
            if name in now:
                yield from differences(value, now[name], f"{place}.{name}")
            else:
                yield f"{place}.{name} is missing"
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from differences(one, other, f"{place}[{index}]")
    elif isinstance(before, float) or isinstance(now, float):
        if before != pytest.approx(now, abs=1e-4):
            yield f"{place}: {before} is {now}"
    elif before != now:
        yield f"{place}: {before!r:.80} is {now!r:.80}"


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """Run the server of `ppl up` on its append-only file; yield its address."""
    server = EmbeddedValkey.create_in(folder)
    spec = server.spec(folder / "log")
    process = subprocess.Popen(spec.command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        while not server.accepts_commands():
            time.sleep(0.02)
        yield server.url
    finally:
        process.terminate()
        process.wait(10)


def estimate_by_worker(message: dict[str, Any], pixels: bytes, settings: Settings, client: Any) -> BatchReply:
    """Let today's worker answer a batch."""
    models = ResidentModels(
        open_versions(settings), 1, lambda folder: Predictor.load(folder, "cpu"), InferenceMetrics()
    )
    client.set(routing.pixels_key(message["batch_id"]), pixels)
    InferenceEngine(client, models, InferenceMetrics(), Stop()).handle(message)
    return BatchReply.unpack(client.lpop(message["reply_to"]))


def decoded(seen: dict[str, Any]) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in seen["messages"].items()}


def batch_of(messages: dict[str, bytes]) -> dict[str, Any]:
    """Return the argument of the task in the queue's message."""
    (batch,), _, _ = json.loads(base64.b64decode(json.loads(messages["message"])["body"]))
    return batch


@pytest.mark.parametrize("release", RELEASES)
def test_gateway_shows_what_the_release_showed(release: str, tmp_path: Path) -> None:
    seen = unpack(release, tmp_path)
    root = tmp_path / "data"
    with valkey(root / "valkey") as url:
        settings = Settings(data_root=root, redis_url=url, sample_categories=False)
        with live_gateway(settings) as address, httpx.Client(base_url=address, trust_env=False) as http:

            def get(path: str) -> Any:
                return http.get(path).raise_for_status().json()

            newest = seen["jobs"][-1]["version"]
            found = {job["id"]: list(differences(job, get(f"/train-jobs/{job['id']}"))) for job in seen["jobs"]}
            assert found == {job["id"]: [] for job in seen["jobs"]}
            assert get("/priors")["items"][0]["version"] == newest
            # links are those that one would draw by now, unless all are asked for
            assert list(differences(seen["prior"], get("/priors/crosses?include=links"))) == []
            assert list(differences(seen["history"], get("/priors/crosses/history"))) == []
            versions = {item["version"]: item["job_id"] for item in get("/priors/crosses/versions")["items"]}
            assert versions == {job["version"]: job["id"] for job in seen["jobs"]}
            if "aliases" in seen:
                assert list(differences(seen["aliases"], get("/priors/crosses/aliases"))) == []
                assert get("/priors/crosses?version=before")["version"] == seen["jobs"][0]["version"]
            if "dataset" in seen:
                assert list(differences(seen["dataset"], get(f"/datasets/{seen['dataset']['id']}"))) == []
                assert http.get(f"/datasets/{seen['dataset']['id']}/pictures/3").headers["content-type"] == "image/jpeg"
    if "key" in seen:
        assert KeyStore(root).find(seen["key"]["key"]).scopes == [Scope.TRAIN]


@pytest.mark.parametrize("release", RELEASES)
def test_worker_answers_a_gateway_of_the_release_as_that_releases_worker_did(
    release: str, tmp_path: Path, redis_client: redis.Redis
) -> None:
    messages = decoded(unpack(release, tmp_path))
    batch, before = {**batch_of(messages), "deadline": time.time() + 60}, BatchReply.unpack(messages["reply"])
    assert before.error is None
    settings = Settings(data_root=tmp_path / "data")
    now = estimate_by_worker(batch, messages["pixels"], settings, redis_client)
    assert (now.batch_id, now.error) == (before.batch_id, None)
    np.testing.assert_allclose(now.keypoints, before.keypoints, atol=1e-4)
    np.testing.assert_allclose(now.scores, before.scores, atol=1e-4)


@pytest.mark.parametrize("release", RELEASES)
def test_a_worker_of_the_release_is_understood_and_understands_today(release: str, tmp_path: Path) -> None:
    messages = decoded(unpack(release, tmp_path))
    beat = WorkerHeartbeat.parse(messages["heartbeat"])
    assert beat is not None
    assert (beat.kind, beat.device) == ("inference", "cpu")
    # it ignores the fields it does not know, and finds all others
    before = batch_of(messages)
    today = BatchRequest(**{**before, "codes": True, "requests": ["r"]}).model_dump()
    assert [name for name, value in before.items() if not isinstance(today[name], type(value))] == []


@pytest.mark.parametrize("release", RELEASES)
def test_another_contract_is_refused_on_both_sides(
    release: str, tmp_path: Path, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages of the release as those of a later contract find a clear error, and no wrong answer."""
    messages = decoded(unpack(release, tmp_path))
    monkeypatch.setattr("service.contract.messages.CONTRACT_VERSION", 2)
    reply = estimate_by_worker(
        batch_of(messages), messages["pixels"], Settings(data_root=tmp_path / "data"), redis_client
    )
    for answer in (reply, BatchReply.unpack(messages["reply"])):
        assert isinstance(answer.error, ContractMismatch)
        assert "same release" in answer.error.detail
    assert WorkerHeartbeat.parse(messages["heartbeat"]) is None


def test_bucket_is_read(tmp_path: Path, redis_client: redis.Redis, redis_url: str) -> None:
    seen = unpack("bucket", tmp_path)
    settings = Settings(
        data_root=tmp_path / "root", store_url=f"file://{tmp_path}/bucket", redis_url=redis_url, sample_categories=False
    )
    messages = decoded(seen)
    batch, before = {**batch_of(messages), "deadline": time.time() + 60}, BatchReply.unpack(messages["reply"])
    now = estimate_by_worker(batch, messages["pixels"], settings, redis_client)
    np.testing.assert_allclose(now.keypoints, before.keypoints, atol=1e-4)
    with live_gateway(settings) as address, httpx.Client(base_url=address, trust_env=False) as http:
        for path, document in (
            ("/priors/crosses", seen["prior"]),
            ("/priors/crosses/aliases", seen["aliases"]),
            (f"/datasets/{seen['dataset']['id']}", seen["dataset"]),
        ):
            wait_for(lambda asked=path: http.get(asked).is_success)  # type: ignore[misc]
            assert list(differences(document, http.get(path).json())) == []
        assert http.get(f"/datasets/{seen['dataset']['id']}/pictures/3").headers["content-type"] == "image/jpeg"
    keys = KeyStore.open(settings)
    keys.follow()
    assert keys.find(seen["key"]["key"]).scopes == [Scope.TRAIN]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
