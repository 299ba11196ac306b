from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from model.config import resolve
from model.network.pose_prior_learner import PosePriorLearner
from model.predictor import Predictor
from service.contract import routing
from service.contract.messages import BatchReply, BatchRequest
from service.contract.versions.store import VersionStore
from tests.support.clocks import set_clock
from worker.inference import InferenceEngine, ResidentModels
from worker.jobs import Stop
from worker.metrics import InferenceMetrics

REPLIES = routing.reply_key("gateway")


@pytest.fixture
def metrics() -> InferenceMetrics:
    return InferenceMetrics()


@pytest.fixture
def engine(
    redis_client: redis.Redis, data_root: Path, publish: Callable[..., str], metrics: InferenceMetrics
) -> InferenceEngine:
    publish()
    models = ResidentModels(VersionStore(data_root), 2, lambda folder: Predictor.load(folder, "cpu"), metrics)
    return InferenceEngine(redis_client, models, metrics, Stop())


def batch(client: redis.Redis, images: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8) if images is None else images
    client.set(routing.pixels_key("b1"), images.tobytes(), ex=routing.PIXELS_TTL_S)
    request = BatchRequest(
        batch_id="b1",
        category="dog",
        version="v1",
        count=len(images),
        side=32,
        reply_to=REPLIES,
        timeout_s=30.0,
        deadline=time.time() + 30,
    )
    return {**request.model_dump(), **changes}


def reply(client: redis.Redis) -> BatchReply:
    data = client.lpop(REPLIES)
    assert data is not None, "every batch gets a reply"
    assert client.llen(REPLIES) == 0, "and only one"
    return BatchReply.unpack(data)


def test_batch_is_answered_with_what_the_model_says(
    engine: InferenceEngine, redis_client: redis.Redis, tiny_version: Path, metrics: InferenceMetrics
) -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    more = {"link_map": True, "codes": True, "reconstructions": True}
    engine.handle(batch(redis_client, images, refine_steps=2, **more))
    got = reply(redis_client)
    expected = Predictor.load(tiny_version, "cpu").predict(images, 2, **more)
    assert got.error is None
    for name in ("keypoints", "scores", "trajectory", "link_map", "surprises", "codes", "reconstructions"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=1e-5)
    assert got.trajectory is not None
    assert got.trajectory.shape == (3, 3, 4, 2)
    assert set(got.timing_ms) == {"load", "model", "total"}
    assert not engine.is_busy
    text = metrics.text()
    assert 'ppl_inference_batches_total{outcome="ok"} 1.0' in text
    assert "ppl_inference_images_total 3.0" in text
    assert "ppl_inference_batch_seconds_count 1.0" in text


def test_reply_list_expires_and_pixels_are_gone(engine: InferenceEngine, redis_client: redis.Redis) -> None:
    engine.handle(batch(redis_client))
    assert 0 < redis_client.ttl(REPLIES) <= routing.REPLY_TTL_S
    assert not redis_client.exists(routing.pixels_key("b1"))


def test_link_map_and_codes_come_only_where_asked_for(engine: InferenceEngine, redis_client: redis.Redis) -> None:
    engine.handle(batch(redis_client))
    got = reply(redis_client)
    assert (got.link_map, got.codes, got.reconstructions) == (None, None, None)


def test_request_of_a_release_that_knew_no_codes_is_answered(
    engine: InferenceEngine, redis_client: redis.Redis
) -> None:
    message = batch(redis_client)
    del message["codes"]
    engine.handle(message)
    assert reply(redis_client).error is None


def test_redelivered_batch_whose_pixels_are_gone_ends_cleanly(
    engine: InferenceEngine, redis_client: redis.Redis, metrics: InferenceMetrics
) -> None:
    message = batch(redis_client)
    engine.handle(message)
    reply(redis_client)
    engine.handle(message)
    error = reply(redis_client).error
    assert error is not None
    assert error.code == "pixels_expired"
    assert 'outcome="pixels_expired"} 1.0' in metrics.text()


@pytest.mark.parametrize("offset_s", [3600.0, -3600.0])
def test_batch_is_answered_by_a_worker_with_another_clock(
    engine: InferenceEngine, redis_client: redis.Redis, offset_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = batch(redis_client)
    set_clock(monkeypatch, offset_s)
    engine.handle(message)
    assert reply(redis_client).error is None


def test_batch_that_came_too_late_is_not_estimated(
    engine: InferenceEngine, redis_client: redis.Redis, metrics: InferenceMetrics
) -> None:
    message = batch(redis_client)
    redis_client.pexpire(routing.pixels_key("b1"), 1)
    time.sleep(0.01)
    engine.handle(message)
    error = reply(redis_client).error
    assert error is not None
    assert error.code == "pixels_expired"
    assert "ppl_inference_images_total 0.0" in metrics.text()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"contract": 99}, "contract_mismatch"),
        ({"count": 0}, "bad_request"),
        ({"count": 4}, "model_failed"),  # fewer pixels than it says
        ({"side": 48, "count": 1}, "model_failed"),
        ({"category": "cat"}, "unknown_category"),
        ({"version": "v9"}, "unknown_version"),
        ({"version": "../../x"}, "bad_version_name"),
    ],
)
def test_batch_that_cannot_be_done_is_answered_with_the_reason(
    engine: InferenceEngine, redis_client: redis.Redis, changes: dict[str, Any], code: str
) -> None:
    engine.handle(batch(redis_client, **changes))
    error = reply(redis_client).error
    assert error is not None
    assert error.code == code


def test_pixels_of_another_side_than_the_models_are_a_model_error_without_a_trace(
    engine: InferenceEngine, redis_client: redis.Redis
) -> None:
    engine.handle(batch(redis_client, np.zeros((1, 64, 64, 3), np.uint8), side=64))
    error = reply(redis_client).error
    assert error is not None
    assert (error.code, error.detail) == ("model_failed", "the model failed on this batch")


@pytest.mark.parametrize("reply_to", [None, 7, "ppl:jobs", "elsewhere"])
def test_batch_without_a_reply_list_is_dropped_and_harms_no_other_key(
    engine: InferenceEngine, redis_client: redis.Redis, reply_to: object
) -> None:
    message = batch(redis_client, reply_to=reply_to)
    before = set(redis_client.keys())
    engine.handle(message)
    assert set(redis_client.keys()) <= before


def test_next_batch_is_answered_after_a_failed_one(engine: InferenceEngine, redis_client: redis.Redis) -> None:
    engine.handle(batch(redis_client, category="cat"))
    assert reply(redis_client).error is not None
    engine.handle(batch(redis_client))
    assert reply(redis_client).error is None


def test_refinement_of_a_model_without_a_memory_is_an_error(
    redis_client: redis.Redis, data_root: Path, publish: Callable[..., str], metrics: InferenceMetrics
) -> None:
    publish()
    config = resolve("compact", {"method": "autolink", "image_size": 32, "base_width": 8, "num_keypoints": 4})
    bare = Predictor(PosePriorLearner(config), "cpu")
    models = ResidentModels(VersionStore(data_root), 1, lambda folder: bare, metrics)
    for asked in ({"refine_steps": 1}, {"codes": True}):
        InferenceEngine(redis_client, models, metrics, Stop()).handle(batch(redis_client, **asked))
        error = reply(redis_client).error
        assert error is not None
        assert error.code == "no_memory"
