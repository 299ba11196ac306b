"""What the client does beside HTTP. Its counterpart that is awaited is :mod:`service.client.aio.concurrency`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def in_thread(function: Callable[..., Result], *arguments: object) -> Result:
    """Run it: whoever calls waits for it in any case."""
    return function(*arguments)
