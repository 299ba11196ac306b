"""Which workers live, by their heartbeats in Redis."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from service.contract import routing
from service.contract.messages import WorkerHeartbeat
from service.contract.routing import Kind


class Workers:
    """The workers as of the last look.

    Args:
        client: an asynchronous Redis client.
    """

    def __init__(self, client: Any) -> None:
        self._redis = client
        self._live: dict[Kind, list[WorkerHeartbeat]] = {kind: [] for kind in routing.KINDS}
        self._strangers = 0

    async def look(self) -> None:
        """Read all heartbeats. When Redis does not answer, what was known is forgotten and its error raised."""
        found: dict[Kind, list[WorkerHeartbeat | None]] = {kind: [] for kind in routing.KINDS}
        try:
            for kind in routing.KINDS:
                found[kind] = await self._heartbeats(kind)
        except Exception:
            found = {kind: [] for kind in routing.KINDS}
            raise
        finally:
            self._live = {kind: [beat for beat in beats if beat] for kind, beats in found.items()}
            self._strangers = sum(beats.count(None) for beats in found.values())

    async def _heartbeats(self, kind: Kind) -> list[WorkerHeartbeat | None]:
        """Those of a kind that have not expired; None stands for one that can't be understood."""
        ids = [item.decode() for item in await self._redis.zrange(routing.workers_key(kind), 0, -1)]
        keys = [routing.worker_key(kind, worker_id) for worker_id in ids]
        stored = await self._redis.mget(keys) if keys else []
        return [_parsed(data) for data in stored if data is not None]

    def live(self, kind: Kind) -> list[WorkerHeartbeat]:
        """The workers of a kind that live."""
        return self._live[kind]

    def count(self, kind: Kind) -> int:
        """How many of a kind live."""
        return len(self._live[kind])

    @property
    def strangers(self) -> int:
        """Workers that live but speak another version of the contract."""
        return self._strangers


def _parsed(data: bytes) -> WorkerHeartbeat | None:
    try:
        return WorkerHeartbeat.parse(data)
    except (ValueError, ValidationError):
        return None
