"""``python -m worker inference|training|health``: run one single-process worker until SIGTERM, or check one."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from service.contract import routing
from service.contract.routing import Kind
from worker.settings import WorkerSettings, set_threads

logger = logging.getLogger("worker")


class DeviceMissing(Exception):  # noqa: N818 - named as in service.contract.errors
    """The requested device does not exist here."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run the worker and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("kind", choices=[*routing.KINDS, "health"])
    kind = parser.parse_args(arguments).kind
    if kind == "health":
        from worker import health

        return health.main()
    try:
        return run(kind, WorkerSettings())
    except (ValidationError, DeviceMissing) as error:
        print(f"can't start: {error}", file=sys.stderr)
        return 2


def run(kind: Kind, settings: WorkerSettings) -> int:
    """Run a worker until SIGTERM: the current batch is answered, the current job is checkpointed and requeued.

    Raises:
        DeviceMissing: the requested device does not exist here.
    """
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for noisy in ("celery.worker.strategy", "celery.app.trace"):  # they log two lines a batch
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    if kind == "training":
        let_inference_go_first(settings.training_nice)
    set_threads(settings.inference_threads if kind == "inference" else settings.training_threads)

    # imported here because torch and Celery take seconds, which `health` does not need
    from celery import signals

    from model.network.blocks import pick_device
    from worker.app import make_app, make_parts
    from worker.jobs import Stop
    from worker.training.rank_processes import check_devices

    try:
        pick_device(settings.device)
        if kind == "training":
            check_devices(settings.device, settings.training_processes)
    except ValueError as error:
        raise DeviceMissing(f"PPL_DEVICE, PPL_TRAINING_PROCESSES: {error}") from error
    stop = Stop()
    app = make_app(kind, settings)
    parts = make_parts(kind, app, settings, stop)
    if settings.worker_metrics_port:
        try:
            parts.metrics.serve(settings.worker_metrics_host, settings.worker_metrics_port)
        except OSError:  # another worker on this host has the port; heartbeats carry the metrics too
            logger.exception("metrics can't be served: port=%d", settings.worker_metrics_port)

    def start_parts(**_: Any) -> None:
        parts.start()

    def request_stop(**_: Any) -> None:
        stop.request()

    def stop_parts(**_: Any) -> None:
        parts.stop()

    signals.worker_ready.connect(start_parts, weak=False)
    signals.worker_shutting_down.connect(request_stop, weak=False)
    signals.worker_shutdown.connect(stop_parts, weak=False)
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
