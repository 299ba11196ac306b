"""What travels between gateway and worker: a batch, its reply, and a worker's heartbeat.

Every message carries the contract version of its sender. A side that gets another version than
its own says so with the code ``contract_mismatch``, and never guesses. What a later release adds
without changing what was there (``codes``, ``surprises``) may be missing: an older worker does not
know that it was asked, an older gateway does not look.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import BadRequest, ContractMismatch, PPLError, error_from_code
from .routing import CONTRACT_VERSION, Kind

MAX_REFINE_STEPS = 10


class BatchRequest(BaseModel):
    """One batch of pictures of one category and version; its pixels are in a key of their own."""

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
    reply_to: str = Field(description="the reply list's key")
    deadline: float = Field(description="unix time after which nobody waits for the reply")

    @property
    def num_bytes(self) -> int:
        """Length of the pixels' key."""
        return self.count * self.side * self.side * 3

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> BatchRequest:
        """A message as it came off the queue.

        Raises:
            ContractMismatch: of another contract version.
            BadRequest: of this version, but malformed.
        """
        check_contract(message)
        try:
            return cls.model_validate(dict(message))
        except ValidationError as error:
            raise BadRequest(f"malformed batch: {error.error_count()} errors") from error


class BatchReply(BaseModel):
    """The poses of a batch, or why there are none.

    Attributes:
        keypoints: (N, K, 2) float32 in [-1, 1], the last pose of the trajectory.
        scores: (N, K) float32 in [0, 1].
        trajectory: (N, T+1, K, 2) float32, T refinement steps.
        link_map: (N, S, S) uint8, where asked for.
        surprises: (N,) float32, 0 and up; None where the version has no scale, or the worker is of an older release.
        codes: (N, M) uint16, where asked for; None from a worker of an older release.
        timing_ms: of the worker: "load" (reading the version, 0 where resident), "model", "total".
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
    timing_ms: dict[str, float] = Field(default_factory=dict)

    @property
    def num_keypoints(self) -> int:
        """K; 0 in a reply that carries an error."""
        return 0 if self.keypoints is None else int(self.keypoints.shape[1])

    def pack(self) -> bytes:
        """The reply as msgpack; arrays as [dtype, shape, bytes]."""
        return cast(
            bytes,
            msgpack.packb(
                {
                    "contract": self.contract,
                    "batch_id": self.batch_id,
                    "error": self.error.to_dict() if self.error else None,
                    "num_keypoints": self.num_keypoints,
                    "keypoints": _packed(self.keypoints),
                    "scores": _packed(self.scores),
                    "trajectory": _packed(self.trajectory),
                    "link_map": _packed(self.link_map),
                    "surprises": _packed(self.surprises),
                    "codes": _packed(self.codes),
                    "timing_ms": self.timing_ms,
                }
            ),
        )

    @classmethod
    def unpack(cls, data: bytes) -> BatchReply:
        """The inverse of :meth:`pack`.

        A reply of another contract version becomes one whose error says so: its batch_id is
        still needed to answer those who wait.

        Raises:
            ValueError: bytes that are no reply at all.
        """
        try:
            message = msgpack.unpackb(data)
            batch_id = str(message["batch_id"])
        except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
            raise ValueError(f"not a reply: {len(data)} bytes") from error
        try:
            check_contract(message)
        except ContractMismatch as error:
            return cls(batch_id=batch_id, error=error)
        failure = message["error"]
        return cls(
            batch_id=batch_id,
            error=error_from_code(failure["code"], failure["detail"]) if failure else None,
            keypoints=_unpacked(message["keypoints"]),
            scores=_unpacked(message["scores"]),
            trajectory=_unpacked(message["trajectory"]),
            link_map=_unpacked(message["link_map"]),
            surprises=_unpacked(message.get("surprises")),
            codes=_unpacked(message.get("codes")),
            timing_ms=message["timing_ms"],
        )


class WorkerHeartbeat(BaseModel):
    """What a worker says about itself every few seconds while it consumes.

    Attributes:
        busy: whether it works on a batch or a job just now.
        metrics: its counters in Prometheus's text format.
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
        """A heartbeat as stored; None for one of another contract version, whose shape may differ."""
        message = json.loads(data)
        return cls.model_validate(message) if message.get("contract") == CONTRACT_VERSION else None


def check_contract(message: Mapping[str, Any]) -> None:
    """Refuse a message of another release.

    Raises:
        ContractMismatch: says both versions and what to do.
    """
    theirs = message.get("contract")
    if theirs != CONTRACT_VERSION:
        raise ContractMismatch(
            f"a message of contract version {theirs} reached a side that speaks version {CONTRACT_VERSION}; "
            "run gateway and workers of one release"
        )


def _packed(array: NDArray[Any] | None) -> list[Any] | None:
    if array is None:
        return None
    return [array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes()]


def _unpacked(packed: list[Any] | None) -> NDArray[Any] | None:
    if packed is None:
        return None
    dtype, shape, data = packed
    return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
