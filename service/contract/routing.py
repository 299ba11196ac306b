"""Names of queues, tasks and Redis keys, ids that sort by time, and the Celery settings of both sides.

Celery's own keys (queues, unacknowledged messages) have a prefix for each kind of worker, because each kind restores
lost messages by its own visibility timeout.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
import time
from typing import Any, Literal

Kind = Literal["inference", "training"]

CONTRACT_VERSION = 1
KINDS: tuple[Kind, ...] = ("inference", "training")

ESTIMATE_TASK = "ppl.estimate"
TRAIN_TASK = "ppl.train"

LEASE_TTL_S = 15.0
PIXELS_TTL_S = 120  # of earlier releases, whose batches do not say how long they may take
REPLY_TTL_S = 120
HEARTBEAT_TTL_S = 10
ABSENT_S = 15  # a restarting worker is back sooner
HEARTBEAT_EVERY_S = 3.0
RECONCILE_EVERY_S = 5.0
CANCEL_TTL_S = 24 * 3600
# the batch of a killed worker is delivered again after this
INFERENCE_VISIBILITY_S = 15
TRAINING_VISIBILITY_S = 60

# Redis keys: what each holds, and how long unless as long as its job
JOBS = "ppl:jobs"  # sorted set of all job ids, which sort by creation
ACTIVE_JOBS = "ppl:jobs:active"  # set of the ids of jobs that have not ended
job_key = "ppl:job:{}".format  # hash: rev, by, events, owner, record (JSON), ended_at (by Redis' clock)
lease_key = "ppl:job:{}:lease".format  # token of the process that prepares or trains it; LEASE_TTL_S, renewed
cancel_key = "ppl:job:{}:cancel".format  # "1" when a leased job must stop; CANCEL_TTL_S
events_key = "ppl:job:{}:events".format  # stream of its events, ids 1-0, 2-0, …
checkpoints_key = "ppl:job:{}:checkpoints".format  # list of its checkpoints (JSON)
WEBHOOKS = "ppl:webhooks"  # sorted set of jobs with a webhook to send, by due time of Redis' clock, 0 for at once
webhook_lease_key = "ppl:webhook:{}:lease".format  # token of the gateway that sends it; a minute
pace_key = "ppl:pace:{}".format  # by digest of settings, hash: step_s, late_cost of the last job; KEPT_S
pixels_key = "ppl:pixels:{}".format  # by batch, uint8 bytes (N, S, S, 3); until its last request times out
reply_key = "ppl:reply:{}".format  # by gateway process, list of BatchReply (msgpack); REPLY_TTL_S after a push
worker_key = "ppl:worker:{}:{}".format  # by kind and worker, WorkerHeartbeat (JSON); HEARTBEAT_TTL_S
workers_key = "ppl:workers:{}".format  # by kind, sorted set: worker id by the unix time of its last beat
GATEWAYS = "ppl:gateways"  # sorted set: gateway by Redis' time at which it last looked for workers
gateway_key = "ppl:gateway:{}:{}".format  # by group and number, metrics of a gateway of several; HEARTBEAT_TTL_S
rate_key = "ppl:rate:{}".format  # by digest of the caller, unix ms when its bucket is full again; until then
RECONCILE_LOCK = "ppl:reconcile"  # lock of the gateway that reconciles jobs; RECONCILE_EVERY_S
key_prefix = "ppl:{}:".format  # by kind, of kombu's keys
queue_key = "ppl:{0}:{0}".format  # by kind, list of waiting messages
seen_key = "ppl:workers:{}:seen".format  # by kind, exists while a worker was seen; ABSENT_S after a beat
PRIORITIES = (0, 3, 6)  # of batches, kombu's: pictures at once, streams and videos at once, in the background
unacked_index_key = "ppl:{}:unacked_index".format  # by kind, sorted set of unacknowledged messages by Redis' time

# of ids
_TIME_DIGITS = 15
_TICKS_PER_MS = 4096
_last_ticks = 0
_ticks_lock = threading.Lock()


def request_key(name: str, owner: str | None = None) -> str:
    """Return the key of a request to train: hash of job and fingerprint, for PPL_IDEMPOTENCY_TTL_S.

    Args:
        name: its Idempotency-Key, which may have any form.
        owner: id of the sender's API key, if any; two senders may use the same name.
    """
    sender = f"{owner} " if owner else ""
    return f"ppl:request:{hashlib.sha256((sender + name).encode()).hexdigest()}"


def worker_id_prefix(pid: int) -> str:
    """Return how the ids of all workers of a process on this host begin."""
    return f"{socket.gethostname()}-{pid}-"


def batch_queue_key(priority: int) -> str:
    """Return the key of the list of waiting batches of a priority, which kombu reads in the order of priorities."""
    key = queue_key("inference")
    return f"{key}\x06\x16{priority}" if priority else key


def celery_options(kind: Kind, redis_url: str) -> dict[str, Any]:
    """Return the Celery settings of both sides of a kind's queue: JSON only, no results, no events."""
    return {
        "broker_url": redis_url,
        "broker_transport_options": {
            "global_keyprefix": key_prefix(kind),
            "visibility_timeout": INFERENCE_VISIBILITY_S if kind == "inference" else TRAINING_VISIBILITY_S,
            # kombu restores messages of dead workers every interval x throttle: 2 s instead of 100 s
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            # a process killed while it held the lock must not block the others for kombu's default of five minutes
            "unacked_mutex_expire": 10,
            "socket_timeout": 10.0,
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        "broker_connection_retry_on_startup": True,
        "task_default_queue": kind,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        "task_create_missing_queues": True,
        "worker_send_task_events": False,
        "task_send_sent_event": False,
    }


def time_ordered_id(digits: int) -> str:
    """Return hex digits that sort by time of creation, to a quarter of a microsecond; within a process always.

    Twelve digits are milliseconds since 1970 and three their fraction, as in UUID version 7 with increased clock
    precision (RFC 9562, 6.2, method 3); the rest is random. If the clock stops or goes back, the time counts on.

    Args:
        digits: number of digits, at least 22; all after the first 15 are random.
    """
    global _last_ticks
    with _ticks_lock:
        _last_ticks = max(_last_ticks + 1, time.time_ns() * _TICKS_PER_MS // 1_000_000)
        ticks = _last_ticks
    num_random = digits - _TIME_DIGITS
    return f"{ticks:0{_TIME_DIGITS}x}{secrets.randbits(4 * num_random):0{num_random}x}"
