"""Schemas of errors and of the health of the service."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """The body of every error, as ``application/problem+json``."""

    type: str = Field(examples=["urn:ppl:problem:unknown_category"], description="identifies the kind of problem")
    title: str = Field(examples=["Unknown category"], description="short text, the same for every problem of a kind")
    status: int = Field(examples=[404], description="HTTP status")
    detail: str = Field(
        examples=["no prior was learned for category 'cat' yet"],
        description="what came, what was expected, and what to do",
    )
    code: str = Field(examples=["unknown_category"], description="error code for programs; it never changes")
    request_id: str | None = Field(
        None, examples=["9f2c31d07ab4e6c8"], description="id of the request, as in X-Request-ID and the server's log"
    )


class PictureProblem(Problem):
    """The reason why one of several pictures has no pose."""

    index: int = Field(description="place of the picture in the request, from 0")
    frame: int | None = Field(
        None, description="for a video: number of the frame; absent where the problem ends the video early"
    )
    time_s: float | None = Field(None, description="for a video: when the frame is shown, in seconds")


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """The parts that a request needs, each "ok" or a description of the failure."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str] = Field(
        examples=[{"redis": "ok", "inference_worker": "ok", "training_worker": "none is running"}]
    )
