"""What the client does beside HTTP, awaited. Its counterpart for threads is :mod:`service.client.sync.concurrency`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def sleep(seconds: float) -> None:
    """Let others go on for so long."""
    await asyncio.sleep(seconds)


async def in_thread(function: Callable[..., Result], *arguments: object) -> Result:
    """Run what blocks, as packing a folder does, beside the loop."""
    return await asyncio.to_thread(function, *arguments)
