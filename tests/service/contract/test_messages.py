from __future__ import annotations

import json
import time

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.errors import (
    BadRequest,
    ContractMismatch,
    PixelsExpired,
    PPLError,
    WorkerUnavailable,
    error_from_code,
)
from service.contract.messages import BatchReply, BatchRequest, WorkerHeartbeat
from service.contract.routing import CONTRACT_VERSION


def request(**changes: object) -> dict[str, object]:
    batch = BatchRequest(
        batch_id="b", category="dog", version="v1", count=2, side=32, reply_to="ppl:reply:g", deadline=time.time()
    )
    return {**json.loads(batch.model_dump_json()), **changes}


def test_request_survives_json() -> None:
    batch = BatchRequest.parse(request(refine_steps=3, link_map=True))
    assert (batch.refine_steps, batch.link_map, batch.num_bytes) == (3, True, 2 * 32 * 32 * 3)


@pytest.mark.parametrize("contract", [CONTRACT_VERSION + 1, 0, None])
def test_request_of_another_release_says_so(contract: int | None) -> None:
    with pytest.raises(ContractMismatch, match="same release"):
        BatchRequest.parse(request(contract=contract, side="of a shape we don't know"))


@pytest.mark.parametrize("changes", [{"count": 0}, {"side": "x"}, {"refine_steps": 11}])
def test_malformed_request_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        BatchRequest.parse(request(**changes))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_reply_survives_the_wire(count: int, keypoints: int, refine_steps: int, link_map: bool) -> None:
    rng = np.random.default_rng(0)
    reply = BatchReply(
        batch_id="b",
        keypoints=rng.normal(size=(count, keypoints, 2)).astype(np.float32),
        scores=rng.random((count, keypoints), dtype=np.float32),
        trajectory=rng.normal(size=(count, refine_steps + 1, keypoints, 2)).astype(np.float32),
        link_map=rng.integers(0, 256, (count, 8, 8), dtype=np.uint8) if link_map else None,
        surprises=rng.random(count, dtype=np.float32),
        presences=rng.random(count, dtype=np.float32),
        codes=rng.integers(0, 512, (count, 3), dtype=np.uint16) if link_map else None,
        reconstructions=rng.integers(0, 256, (count, 2, 4, 4, 3), dtype=np.uint8) if link_map else None,
        timing_ms={"model": 1.5},
    )
    back = BatchReply.unpack(reply.pack())
    for name in ("keypoints", "scores", "trajectory", "link_map", "surprises", "codes", "presences", "reconstructions"):
        sent, got = getattr(reply, name), getattr(back, name)
        assert (sent is None) == (got is None)
        if sent is not None:
            assert got.dtype == sent.dtype
            np.testing.assert_array_equal(got, sent)
    assert back.timing_ms == {"model": 1.5}


def test_array_that_is_not_contiguous_arrives_whole() -> None:
    wide = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    back = BatchReply.unpack(BatchReply(batch_id="b", keypoints=wide[..., :2]).pack())
    assert back.keypoints is not None
    np.testing.assert_array_equal(back.keypoints, wide[..., :2])


def test_error_arrives_as_the_class_it_was() -> None:
    back = BatchReply.unpack(BatchReply(batch_id="b", error=PixelsExpired("too late")).pack())
    assert isinstance(back.error, PixelsExpired)
    assert back.error.detail == "too late"
    assert back.keypoints is None


def test_reply_of_another_release_becomes_an_error_for_its_batch() -> None:
    data = msgpack.packb({"contract": CONTRACT_VERSION + 1, "batch_id": "b", "poses": "unknown shape"})
    back = BatchReply.unpack(data)
    assert back.batch_id == "b"
    assert isinstance(back.error, ContractMismatch)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x01", msgpack.packb({"no": "id"}), b"\x81\xa1"])
def test_bytes_that_are_no_reply_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a reply"):
        BatchReply.unpack(data)


REPLY = {"contract": CONTRACT_VERSION, "batch_id": "b", "error": None}


@pytest.mark.parametrize(
    "message",
    [
        {"contract": CONTRACT_VERSION, "batch_id": "b"},
        {**REPLY, "error": 5},
        {**REPLY, "error": {"code": []}},
        {**REPLY, "keypoints": ["|O", [1], b"12345678"]},
        {**REPLY, "keypoints": ["<f4", [10**9, 10**9], b""]},
        {**REPLY, "keypoints": ["<f4", ["x"], b"1234"]},
        {**REPLY, "keypoints": ["<f4", [1], "text"]},
        {**REPLY, "keypoints": [["<f4"], [1], b"1234"]},
        {**REPLY, "keypoints": ["<f4", [1]]},
        {**REPLY, "keypoints": "text"},
        {**REPLY, "timing_ms": {"model": "long"}},
    ],
)
def test_malformed_reply_is_dropped_and_ends_no_loop(message: dict[str, object]) -> None:
    """The loop that reads replies drops what raises ValueError; any program that can write to Redis can write such."""
    with pytest.raises(ValueError, match="malformed"):
        BatchReply.unpack(msgpack.packb(message))


def test_unknown_error_code_keeps_its_detail() -> None:
    error = error_from_code("of_a_later_release", "say this")
    assert type(error) is PPLError
    assert (error.status, error.detail) == (500, "say this")


def test_error_carries_what_a_problem_document_needs() -> None:
    error = WorkerUnavailable(retry_after_s=2, extra={"waited_s": 30})
    assert (error.status, error.title, error.detail) == (503, "Worker unavailable", "Worker unavailable")
    assert (error.retry_after_s, error.extra) == (2, {"waited_s": 30})


def test_heartbeat_of_another_release_is_ignored() -> None:
    beat = WorkerHeartbeat(kind="training", id="w", pid=1, host="h", started_at=1.0, device="cpu")
    assert WorkerHeartbeat.parse(beat.model_dump_json()) == beat
    assert WorkerHeartbeat.parse(json.dumps({"contract": CONTRACT_VERSION + 1, "kind": "other"})) is None
    assert WorkerHeartbeat.parse(json.dumps({"contract": CONTRACT_VERSION})) is None


def test_reply_of_the_first_release_is_read() -> None:
    message = msgpack.unpackb(BatchReply(batch_id="b", scores=np.ones((1, 2), np.float32)).pack())
    del message["surprises"], message["codes"], message["presences"], message["reconstructions"]
    back = BatchReply.unpack(msgpack.packb(message))
    assert back.error is None
    assert back.scores is not None
    assert (back.surprises, back.codes, back.presences, back.reconstructions) == (None, None, None, None)


def test_request_of_the_first_release_is_read() -> None:
    message = request()
    del message["codes"]
    assert BatchRequest.parse(message).codes is False
