"""``python -m worker health``: check that a worker on this host sent a heartbeat recently. Imports no torch."""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import redis

from service.contract import routing
from service.contract.messages import WorkerHeartbeat
from service.contract.settings import CommonSettings


def main() -> int:
    """Return 0 if a worker of either kind on this host is alive, else 1."""
    host = socket.gethostname()
    try:
        with redis.Redis.from_url(CommonSettings().redis_url, socket_connect_timeout=3, socket_timeout=3) as client:
            alive = [beat for beat in _read_heartbeats(client) if beat.host == host]
    except redis.RedisError as error:
        print(f"Redis does not answer: {error}", file=sys.stderr)
        return 1
    for beat in alive:
        print(f"{beat.kind} worker {beat.id} is alive")
    if not alive:
        print(f"no worker on {host} is alive", file=sys.stderr)
    return 0 if alive else 1


def _read_heartbeats(client: Any) -> list[WorkerHeartbeat]:
    since = time.time() - routing.HEARTBEAT_TTL_S
    beats = []
    for kind in routing.KINDS:
        for worker_id in client.zrangebyscore(routing.workers_key(kind), since, "+inf"):
            data = client.get(routing.worker_key(kind, worker_id.decode()))
            beats.append(WorkerHeartbeat.parse(data) if data else None)
    return [beat for beat in beats if beat]
