"""Tensors and JSON on disk: safetensors files, replaced atomically; never pickles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class CheckpointError(ValueError):
    """A file that is damaged, or of another program or model; the message says which."""


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON facts as one file, replacing an older one atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, draft, metadata={"facts": json.dumps(facts, allow_nan=False)})
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors, on the CPU, and facts that :func:`save` wrote.

    Raises:
        CheckpointError: the file was not written by :func:`save`, or is damaged.
        FileNotFoundError: there is none.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["facts"])
            return {name: opened.get_tensor(name) for name in opened.keys()}, facts  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of this program: {error}") from error


def save_json(path: Path, value: Any) -> None:
    """Write JSON; raise ValueError for NaN and infinity."""
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))
