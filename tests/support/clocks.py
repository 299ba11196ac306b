"""Clocks of this process that are wrong."""

from __future__ import annotations

import time
from datetime import datetime, tzinfo
from typing import Any

import pytest

_TRUE = time.time


def set_clock(monkeypatch: pytest.MonkeyPatch, offset_s: float, *modules: Any) -> None:
    """Set the wall clock of this process forward or back; also ``datetime.now`` of modules that use it."""
    monkeypatch.setattr(time, "time", lambda: _TRUE() + offset_s)

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(_TRUE() + offset_s, tz)

    for module in modules:
        monkeypatch.setattr(module, "datetime", Shifted)
