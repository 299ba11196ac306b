"""Messages between gateway and worker: batches, replies and heartbeats.

Every message carries its sender's contract version; another version than the receiver's raises ContractMismatch.
Optional fields added within a version may be missing from an older release's messages: ``codes``, ``surprises``,
``presences``, ``reconstructions``, ``requests``, ``traceparent``, ``priority``, ``timeout_s``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import BadRequest, ContractMismatch, PPLError, error_from_code
from .routing import CONTRACT_VERSION, Kind

MAX_REFINE_STEPS = 10
_DTYPES = frozenset(("<f4", "|u1", "<u2"))  # of a reply's arrays


class BatchRequest(BaseModel):
    """One batch of pictures of one category and version; its pixels are in a separate key."""

    model_config = ConfigDict(frozen=True)

    contract: int = CONTRACT_VERSION
    batch_id: str
    category: str
    version: str
    count: int = Field(ge=1, description="N, pictures in the batch")
    side: int = Field(ge=1, description="S, side of the square in pixels")
    refine_steps: int = Field(0, ge=0, le=MAX_REFINE_STEPS)
    link_map: bool = False
    codes: bool = False
    reconstructions: bool = False
    reply_to: str = Field(description="the reply list's key")
    timeout_s: float | None = Field(None, gt=0, description="seconds after which the reply is not needed")
    deadline: float = Field(description="the same as unix time, for workers of earlier releases")
    priority: int = Field(0, description="kombu's: batches of a higher number wait for those of a lower one")
    requests: list[str] = Field(default_factory=list, description="ids of the requests in the batch, for the log")
    traceparent: str | None = Field(None, description="the span that the worker's belong to")

    @property
    def num_bytes(self) -> int:
        """Length of the pixels in bytes."""
        return self.count * self.side * self.side * 3

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> BatchRequest:
        """Parse a message from the queue. Raises ContractMismatch, BadRequest if malformed."""
        _check_contract(message)
        try:
            return cls.model_validate(message)
        except ValidationError as error:
            raise BadRequest(f"the batch message is malformed: {error.error_count()} errors") from error


class BatchReply(BaseModel):
    """The poses of a batch, or the error.

    Attributes:
        keypoints: (N, K, 2) float32 in [-1, 1], the last pose of the trajectory.
        scores: (N, K) float32 in [0, 1].
        trajectory: (N, T+1, K, 2) float32, T refinement steps.
        link_map: (N, S, S) uint8, if requested.
        surprises: (N,) float32 >= 0; None if the version has no scale, or from an older worker.
        codes: (N, M) uint16, if requested; None from an older worker.
        presences: (N,) float32 in [0, 1]; None if the version is not calibrated, or from an older worker.
        reconstructions: (N, T+1, s, s, 3) uint8, if requested; None from an older worker.
        timing_ms: the worker's times: "load" (loading the version, 0 if resident), "model", "total".
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    batch_id: str
    contract: int = CONTRACT_VERSION
    error: PPLError | None = None
    keypoints: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    trajectory: NDArray[np.float32] | None = None
    link_map: NDArray[np.uint8] | None = None
    surprises: NDArray[np.float32] | None = None
    codes: NDArray[np.uint16] | None = None
    presences: NDArray[np.float32] | None = None
    reconstructions: NDArray[np.uint8] | None = None
    timing_ms: dict[str, float] = Field(default_factory=dict)

    def pack(self) -> bytes:
        """Encode as msgpack, arrays as [dtype, shape, bytes]."""
        fields = {**dict(self), "error": self.error and self.error.to_dict()}
        return cast(bytes, msgpack.packb(fields, default=_encode_array))

    @classmethod
    def unpack(cls, data: bytes) -> BatchReply:
        """Decode a reply. Raises ValueError for bytes that are not one.

        A reply of another contract version becomes one with a ContractMismatch: its batch_id is still needed.
        """
        try:
            message = msgpack.unpackb(data)
            batch_id = str(message["batch_id"])
        except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
            raise ValueError(f"{len(data)} bytes are not a reply of a worker") from error
        try:
            _check_contract(message)
        except ContractMismatch as error:
            return cls(batch_id=batch_id, error=error)
        try:
            values: dict[str, Any] = {
                name: _decode_array(value) if isinstance(value, list) else value
                for name, value in message.items()
                if name in cls.model_fields
            }
            if failure := message["error"]:
                values["error"] = error_from_code(failure["code"], failure["detail"])
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the reply to the batch {batch_id[:80]} is malformed") from error


class WorkerHeartbeat(BaseModel):
    """The state that a worker writes every few seconds.

    Attributes:
        busy: whether it is processing a batch or a job.
        metrics: its metrics in Prometheus's text format.
    """

    contract: int = CONTRACT_VERSION
    kind: Kind
    id: str
    pid: int
    host: str
    started_at: float
    device: str
    busy: bool = False
    metrics: str = ""

    @classmethod
    def parse(cls, data: bytes | str) -> WorkerHeartbeat | None:
        """Parse a heartbeat; None if it is not one of this contract version."""
        try:
            beat = cls.model_validate_json(data)
        except ValidationError:
            return None
        return beat if beat.contract == CONTRACT_VERSION else None


def _check_contract(message: Mapping[str, Any]) -> None:
    theirs = message.get("contract")
    if theirs != CONTRACT_VERSION:
        raise ContractMismatch(
            f"the message has contract version {theirs}, expected {CONTRACT_VERSION}; "
            "run gateway and workers of the same release"
        )


def _encode_array(array: NDArray[Any]) -> list[Any]:
    return [array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()]


def _decode_array(packed: list[Any]) -> NDArray[Any]:
    dtype, shape, data = packed
    if dtype not in _DTYPES:
        raise ValueError(f"an array of the type {str(dtype)[:40]}")
    return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
