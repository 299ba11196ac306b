"""The format of an exported version: a zip of its files with a manifest.

manifest.json                   the first member: format, and size and SHA-256 of every other file
version.json  config.json  prior.json  memory.json  weights.safetensors
history.json  presence.json     (optional)
keypoint-names.json  landmarks/<name>.json      additions by users (optional)

Weights are safetensors, everything else is JSON; nothing is executable or pickled.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
REQUIRED = ("version.json", "config.json", "prior.json", "memory.json", WEIGHTS)
PRESENCE = "presence.json"
OPTIONAL = ("history.json", PRESENCE)
NAMES = "keypoint-names.json"
LANDMARKS = re.compile(r"landmarks/([a-z0-9][a-z0-9_-]{0,63})\.json")
MAX_MEMBERS = 120
MAX_JSON_BYTES = 32 * 2**20  # each file of the version
MAX_ADDITION_BYTES = 2 * 2**20  # each addition


class FileFacts(BaseModel):
    """Size and checksum of a member."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(ge=0)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The content of manifest.json."""

    kind: Literal["ppl-version"] = "ppl-version"
    format: int = FORMAT
    category: str = Field(max_length=64)
    version: str = Field(max_length=64)
    files: dict[str, FileFacts] = Field(max_length=MAX_MEMBERS)


def is_member(name: str) -> bool:
    """Return whether an exported version may have a member of this name beside its manifest."""
    return name in REQUIRED or name in OPTIONAL or name == NAMES or bool(LANDMARKS.fullmatch(name))
