"""Names of queues, tasks and Redis keys, ids that sort by time, and the Celery settings of both sides.

Celery's keys have a prefix for each kind of worker, because each kind restores lost messages by its own visibility
timeout.

key                            value                                              lives
ppl:job:<id>                   hash: rev, by, events, owner, record (as JSON)     until deleted
ppl:jobs                       sorted set of all job ids (ids sort by creation)   with the jobs
ppl:jobs:active                set of the ids of jobs that have not ended         with the jobs
ppl:job:<id>:lease             token of the process that prepares or trains it    LEASE_TTL_S, refreshed
ppl:job:<id>:cancel            "1" when a leased job must stop      a day
ppl:job:<id>:events            stream of its events, ids 1-0, 2-0, …     with the job
ppl:job:<id>:checkpoints       list of its checkpoints (JSON)            with the job
ppl:pace:<digest>              hash: step_s, late_cost of the last job of a kind   PaceBook
ppl:webhooks                   sorted set of jobs with a webhook to send, by due time
ppl:webhook:<id>:lease         token of the gateway that sends it                 a minute
ppl:request:<digest>           hash: job, fingerprint of a request to train       PPL_IDEMPOTENCY_TTL_S
ppl:pixels:<batch>             uint8 bytes (N, S, S, 3)                           PIXELS_TTL_S
ppl:reply:<gateway>            list of BatchReply (msgpack)                       REPLY_TTL_S after a push
ppl:worker:<kind>:<id>         WorkerHeartbeat (JSON)                             HEARTBEAT_TTL_S
ppl:workers:<kind>             sorted set: worker id by the unix time of its last beat
ppl:reconcile                  lock of the gateway that reconciles jobs       RECONCILE_EVERY_S
ppl:inference:… ppl:training:… Celery's own (queues, unacknowledged messages)
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from typing import Any, Literal

Kind = Literal["inference", "training"]

CONTRACT_VERSION = 1
KINDS: tuple[Kind, ...] = ("inference", "training")

ESTIMATE_TASK = "ppl.estimate"
TRAIN_TASK = "ppl.train"

LEASE_TTL_S = 15.0
PIXELS_TTL_S = 120
REPLY_TTL_S = 120
HEARTBEAT_TTL_S = 10
HEARTBEAT_EVERY_S = 3.0
RECONCILE_EVERY_S = 5.0
CANCEL_TTL_S = 24 * 3600
# the batch of a killed worker is delivered again after this
INFERENCE_VISIBILITY_S = 15
TRAINING_VISIBILITY_S = 60

JOBS = "ppl:jobs"
ACTIVE_JOBS = "ppl:jobs:active"
WEBHOOKS = "ppl:webhooks"
RECONCILE_LOCK = "ppl:reconcile"

# of ids
_TIME_DIGITS = 15
_TICKS_PER_MS = 4096
_last_ticks = 0
_ticks_lock = threading.Lock()


def task_name(kind: Kind) -> str:
    """Return the Celery task of a kind of worker."""
    return ESTIMATE_TASK if kind == "inference" else TRAIN_TASK


def queue_name(kind: Kind) -> str:
    """Return the Celery queue of a kind of worker, without its key prefix."""
    return kind


def key_prefix(kind: Kind) -> str:
    """Return the prefix of kombu's keys."""
    return f"ppl:{kind}:"


def queue_key(kind: Kind) -> str:
    """Return the key of the list of a kind's waiting messages."""
    return key_prefix(kind) + queue_name(kind)


def unacked_index_key(kind: Kind) -> str:
    """Return the key of the sorted set of unacknowledged messages (delivery tag by unix time)."""
    return key_prefix(kind) + "unacked_index"


def job_key(job_id: str) -> str:
    """Return the key of a job's hash."""
    return f"ppl:job:{job_id}"


def request_key(name: str, owner: str | None = None) -> str:
    """Return the key of a request with an Idempotency-Key, hashed because names may have any form.

    Args:
        owner: id of the sender's API key, if any; two senders may use the same name.
    """
    sender = f"{owner} " if owner else ""
    return f"ppl:request:{hashlib.sha256((sender + name).encode()).hexdigest()}"


def webhook_lease_key(job_id: str) -> str:
    """Return the key of the lease of the gateway that sends a job's webhook."""
    return f"ppl:webhook:{job_id}:lease"


def pace_key(kind: str) -> str:
    """Return the key of the pace of some settings."""
    return f"ppl:pace:{kind}"


def lease_key(job_id: str) -> str:
    """Return the key of a job's lease."""
    return f"ppl:job:{job_id}:lease"


def cancel_key(job_id: str) -> str:
    """Return the key of a job's cancel flag."""
    return f"ppl:job:{job_id}:cancel"


def events_key(job_id: str) -> str:
    """Return the key of a job's stream of events."""
    return f"ppl:job:{job_id}:events"


def checkpoints_key(job_id: str) -> str:
    """Return the key of a job's list of checkpoints."""
    return f"ppl:job:{job_id}:checkpoints"


def pixels_key(batch_id: str) -> str:
    """Return the key of a batch's pixels."""
    return f"ppl:pixels:{batch_id}"


def reply_key(gateway_id: str) -> str:
    """Return the key of a gateway process's list of replies."""
    return f"ppl:reply:{gateway_id}"


def worker_key(kind: Kind, worker_id: str) -> str:
    """Return the key of a worker process's heartbeat."""
    return f"ppl:worker:{kind}:{worker_id}"


def workers_key(kind: Kind) -> str:
    """Return the key of the sorted set of a kind's workers by last beat."""
    return f"ppl:workers:{kind}"


def broker_options(kind: Kind) -> dict[str, Any]:
    """Return Celery's ``broker_transport_options``, the same on both sides of a queue.

    kombu restores messages of dead workers every interval x throttle (by default 100 s), here about every 2 s.
    """
    return {
        "global_keyprefix": key_prefix(kind),
        "visibility_timeout": INFERENCE_VISIBILITY_S if kind == "inference" else TRAINING_VISIBILITY_S,
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        # a process killed while it held the lock must not block the others for kombu's default of five minutes
        "unacked_mutex_expire": 10,
        "socket_timeout": 10.0,
        "socket_connect_timeout": 5.0,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }


def celery_options(kind: Kind, redis_url: str) -> dict[str, Any]:
    """Return the Celery settings of both sides: JSON only, no results, no events."""
    return {
        "broker_url": redis_url,
        "broker_transport_options": broker_options(kind),
        "broker_connection_retry_on_startup": True,
        "task_default_queue": queue_name(kind),
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
        digits: at least 22, of which 7 are random.
    """
    global _last_ticks
    if digits < 22:
        raise ValueError(f"{digits} digits leave too few random ones; use at least 22")
    with _ticks_lock:
        _last_ticks = max(_last_ticks + 1, time.time_ns() * _TICKS_PER_MS // 1_000_000)
        ticks = _last_ticks
    num_random = digits - _TIME_DIGITS
    return f"{ticks:0{_TIME_DIGITS}x}{secrets.randbits(4 * num_random):0{num_random}x}"
