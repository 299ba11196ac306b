"""``python -m worker inference|training|health``: one worker process, solo, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from typing import Any

from pydantic import ValidationError

from service.contract import routing
from service.contract.routing import Kind
from worker.settings import WorkerSettings

logger = logging.getLogger("worker")


class DeviceMissing(Exception):  # noqa: N818 - what is wrong, as in service.contract.errors
    """The device that was asked for is not there."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
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
    """Work until told to stop: a batch in hand is answered, a job in hand is checkpointed and queued again.

    Raises:
        DeviceMissing: no such device here.
    """
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for noisy in ("celery.worker.strategy", "celery.app.trace"):  # two lines for each batch
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    if kind == "training" and settings.training_nice:
        os.nice(settings.training_nice)
    _use_threads(settings.inference_threads if kind == "inference" else settings.training_threads)

    # torch and Celery take a second or two, which `health` does not have to pay
    from celery import signals

    from model.network.device import pick_device
    from worker.app import make_app, make_part
    from worker.jobs.held_job import Stop
    from worker.training.rank_processes import check_devices

    try:
        pick_device(settings.device)
        if kind == "training":
            check_devices(settings.device, settings.training_processes)
    except ValueError as error:
        raise DeviceMissing(f"PPL_DEVICE, PPL_TRAINING_PROCESSES: {error}") from error
    stop = Stop()
    app = make_app(kind, settings)
    part = make_part(kind, app, settings, stop)
    if settings.worker_metrics_port:
        try:
            part.metrics.serve(settings.worker_metrics_host, settings.worker_metrics_port)
        except OSError:  # two workers on one host with one setting: the heartbeats carry the metrics too
            logger.exception("no metrics on port %d", settings.worker_metrics_port)

    def ready(**_: Any) -> None:
        part.start()

    def shutting_down(**_: Any) -> None:
        stop.request()

    def shut_down(**_: Any) -> None:
        part.stop()

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(shutting_down, weak=False)
    signals.worker_shutdown.connect(shut_down, weak=False)
    worker = app.Worker(
        hostname=f"{kind}@{socket.gethostname()}",
        pool="solo",
        concurrency=1,
        queues=[routing.queue_name(kind)],
        loglevel=settings.log_level,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _use_threads(count: int) -> None:
    # read when the libraries below torch are loaded
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    import torch

    torch.set_num_threads(count)
    torch.set_num_interop_threads(1)


if __name__ == "__main__":
    sys.exit(main())
