"""An exported version: one zip of its files, told and checked by a manifest in it.

manifest.json                   format, what it is, and size and SHA-256 of every other file; the first in the zip
version.json  config.json  prior.json  memory.json  weights.safetensors  history.json (where there is one)
keypoint-names.json  landmarks/<name>.json      what users added, where they did

No member is a program or a pickle; weights are safetensors, the rest is JSON.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
REQUIRED = ("version.json", "config.json", "prior.json", "memory.json", WEIGHTS)
OPTIONAL = ("history.json",)
NAMES = "keypoint-names.json"
LANDMARKS = re.compile(r"landmarks/([a-z0-9][a-z0-9_-]{0,63})\.json")
MAX_MEMBERS = 120
MAX_JSON_BYTES = 32 * 2**20  # of a file of the version
MAX_ADDITION_BYTES = 2 * 2**20  # of what users added


class FileFacts(BaseModel):
    """What a member of the zip must be."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(ge=0)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """manifest.json."""

    kind: Literal["ppl-version"] = "ppl-version"
    format: int = FORMAT
    category: str = Field(max_length=64)
    version: str = Field(max_length=64)
    files: dict[str, FileFacts] = Field(max_length=MAX_MEMBERS)


def is_member(name: str) -> bool:
    """Whether an exported version may hold a file of this name beside its manifest."""
    return name in REQUIRED or name in OPTIONAL or name == NAMES or bool(LANDMARKS.fullmatch(name))
