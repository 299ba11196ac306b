"""``python -m worker inference|training|health``: run one single-process worker until SIGTERM, or check one."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from contextlib import suppress
from typing import Any

import redis
from pydantic import ValidationError

from service.contract import routing
from service.contract.logs import configure_logging
from service.contract.memory import limit_arenas
from service.contract.messages import WorkerHeartbeat
from service.contract.routing import Kind
from service.contract.settings import CommonSettings
from service.contract.tracing import configure_tracing
from worker.settings import LOG_FORMAT, WorkerSettings, quick_imports, set_threads

logger = logging.getLogger("worker")


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run the worker and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("kind", choices=[*routing.KINDS, "health"])
    kind = parser.parse_args(arguments).kind
    if kind == "health":
        return check_health()
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        print(f"can't start: {error}", file=sys.stderr)
        return 2
    return run(kind, settings)


def check_health() -> int:
    """Return 0 if a worker of either kind on this host sent a heartbeat recently, else 1. Imports no torch."""
    host, alive = socket.gethostname(), False
    try:
        with redis.Redis.from_url(CommonSettings().redis_url, socket_connect_timeout=3, socket_timeout=3) as client:
            for kind in routing.KINDS:
                for worker_id in client.zrange(routing.workers_key(kind), 0, -1):
                    data = client.get(routing.worker_key(kind, worker_id.decode()))  # expires soon after the last one
                    beat = WorkerHeartbeat.parse(data) if data else None
                    if beat and beat.host == host:
                        alive = True
                        print(f"{kind} worker {beat.id} is alive")
    except redis.RedisError as error:
        print(f"Redis does not answer: {error}", file=sys.stderr)
        return 1
    if not alive:
        print(f"no worker on {host} is alive", file=sys.stderr)
    return 0 if alive else 1


def run(kind: Kind, settings: WorkerSettings) -> int:
    """Run a worker until SIGTERM: the current batch is answered, the current job is checkpointed and requeued."""
    limit_arenas()
    configure_logging(settings.log_level, settings.log_format, LOG_FORMAT)
    for noisy in ("celery.worker.strategy", "celery.app.trace"):  # they log two lines a batch
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    if kind == "training":
        let_inference_go_first(settings.training_nice)
    # imported here because torch and Celery take seconds, which `health` does not need
    with quick_imports():
        set_threads(settings.inference_threads if kind == "inference" else settings.training_threads)

        from celery import signals
        from prometheus_client import start_http_server

        from model.training.distributed import pick_rank_device
        from worker.app import make_app, make_inference_parts, make_training_parts
        from worker.jobs import Stop

    processes = settings.training_processes if kind == "training" else 1
    try:
        pick_rank_device(settings.device, processes - 1, processes)
    except ValueError as error:
        print(f"can't start: PPL_DEVICE, PPL_TRAINING_PROCESSES: {error}", file=sys.stderr)
        return 2
    try:
        configure_tracing(settings, kind)
    except ValueError as error:
        print(f"can't start: {error}", file=sys.stderr)
        return 2
    stop = Stop()
    app = make_app(kind, settings)
    make_parts = make_inference_parts if kind == "inference" else make_training_parts
    metrics, threads = make_parts(app, settings, stop)
    if settings.worker_metrics_port:
        try:
            start_http_server(settings.worker_metrics_port, settings.worker_metrics_host, registry=metrics)
        except OSError:  # another worker on this host has the port; heartbeats carry the metrics too
            logger.exception("metrics can't be served: port=%d", settings.worker_metrics_port)

    def start_threads(**_: Any) -> None:
        for thread in threads:
            thread.start()

    def stop_threads(**_: Any) -> None:
        for thread in reversed(threads):
            thread.stop()

    signals.worker_ready.connect(start_threads, weak=False)
    signals.worker_shutting_down.connect(lambda **_: stop.request(), weak=False)
    signals.worker_shutdown.connect(stop_threads, weak=False)
    worker = app.Worker(
        hostname=f"{kind}@{socket.gethostname()}",
        pool="solo",
        concurrency=1,
        queues=[kind],
        loglevel=settings.log_level,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def let_inference_go_first(nice: int) -> None:
    """Make this a batch process: estimates that wake preempt it, and it keeps its share of the cores all the same."""
    os.nice(nice)
    if hasattr(os, "SCHED_BATCH"):
        with suppress(PermissionError):  # in a container that forbids it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    sys.exit(main())
