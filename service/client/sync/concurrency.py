"""Blocking counterpart of :mod:`service.client.aio.concurrency`; written by hand."""

from collections.abc import Callable
from time import sleep as sleep
from typing import Any


def to_thread(function: Callable[..., Any], *arguments: object) -> Any:
    """Call the function in this thread."""
    return function(*arguments)
