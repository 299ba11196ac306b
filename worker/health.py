"""``python -m worker health``: whether a worker on this host said in time that it lives."""

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
    """0 where a worker of either kind on this host has beaten lately; needs no torch."""
    host = socket.gethostname()
    try:
        with redis.Redis.from_url(CommonSettings().redis_url, socket_connect_timeout=3, socket_timeout=3) as client:
            beats = _beats(client)
    except redis.RedisError as error:
        print(f"Redis does not answer: {error}", file=sys.stderr)
        return 1
    mine = [beat for beat in beats if beat.host == host]
    for beat in mine:
        print(f"{beat.kind} worker {beat.id} lives")
    if not mine:
        print(f"no worker on {host} lives", file=sys.stderr)
    return 0 if mine else 1


def _beats(client: Any) -> list[WorkerHeartbeat]:
    found = []
    since = time.time() - routing.HEARTBEAT_TTL_S
    for kind in routing.KINDS:
        for worker_id in client.zrangebyscore(routing.workers_key(kind), since, "+inf"):
            data = client.get(routing.worker_key(kind, worker_id.decode()))
            beat = WorkerHeartbeat.parse(data) if data else None
            if beat:
                found.append(beat)
    return found
