"""The asynchronous client: ``from service.aio import AsyncClient``."""

from .client.aio.client import AsyncClient

__all__ = ["AsyncClient"]
