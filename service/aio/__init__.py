"""The client for programs that are asynchronous themselves; :mod:`service.client` is the same for all others."""

from .client import AsyncClient

__all__ = ["AsyncClient"]
