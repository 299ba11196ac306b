"""Blocking counterpart of :mod:`service.client.aio.concurrency`; written by hand."""

from collections.abc import Callable
from time import sleep as sleep
from typing import TypeVar

Result = TypeVar("Result")


def to_thread(function: Callable[..., Result], *arguments: object) -> Result:
    """Call the function in this thread."""
    return function(*arguments)
