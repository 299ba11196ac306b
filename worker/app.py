"""The Celery application of each kind of worker, and the threads beside its task."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import Celery
from celery.worker.request import Request

from model.network.blocks import pick_device
from model.predictor import Predictor
from service.contract import routing
from service.contract.datasets.store import DatasetFiles
from service.contract.jobs.files import JobFiles
from service.contract.jobs.progress import PaceBook
from service.contract.jobs.store import JobStore
from service.contract.routing import Kind
from service.contract.versions.shared import SharedVersions, open_versions
from worker.inference import InferenceEngine, Keepalive, ResidentModels, VersionsFollower, make_task
from worker.jobs import JobTaker, Stop
from worker.training.runner import TrainingRunner
from worker.uploads.inspection import InspectionLease, Inspector
from worker.uploads.preparer import Preparer

from .caretaker import Caretaker
from .heartbeat import Heartbeat, PeriodicThread, new_worker_id
from .metrics import InferenceMetrics, Metrics, TrainingMetrics
from .redis_clock import RedisClock
from .redis_retries import connect
from .settings import WorkerSettings

# the threads are started once the worker consumes messages, and stopped in reverse order
Parts = tuple[Metrics, tuple[PeriodicThread, ...]]


class StrictRequest(Request):  # type: ignore[misc]  # Celery has no types
    """A message of which an acknowledgement that fails is an error, so that the consumer connects again.

    Celery only logs it. As the message keeps its place among those prefetched, the worker would never take another one.
    """

    def acknowledge(self) -> None:
        """Acknowledge the message. Raises redis.ConnectionError."""
        if not self.acknowledged:
            self.acknowledged: bool = True
            self.message.ack()


_TASK: dict[str, Any] = {"Request": StrictRequest, "ignore_result": True}


def make_app(kind: Kind, settings: WorkerSettings) -> Celery:
    """Return the Celery application of a kind of worker, without its task."""
    app = Celery("ppl", set_as_current=False)
    app.conf.update(routing.celery_options(kind, settings.redis_url))
    app.conf.update(
        broker_connection_max_retries=None,
        # A lost connection must not cancel a batch: a solo pool can't interrupt its task, and a redelivered batch
        # finds no pixels. Jobs are not affected, because their messages are acknowledged early.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
    )
    return app


def make_inference_parts(app: Celery, settings: WorkerSettings, stop: Stop) -> Parts:
    """Register the task with the application, and return the worker's metrics and the threads beside the task."""
    client, metrics = connect(settings.redis_url), InferenceMetrics()
    device = str(pick_device(settings.device))
    load = partial(Predictor.load, device=device)
    store = open_versions(settings)
    models = ResidentModels(store, settings.models_resident, load, metrics)
    engine = InferenceEngine(client, models, metrics, stop)
    heartbeat = Heartbeat(client, "inference", new_worker_id(), device, metrics.text, lambda: engine.is_busy)
    clock = RedisClock(client)
    clock.use_for_messages()
    keepalive = Keepalive(client, "inference", clock.now)

    # acknowledged after the reply, so that the batch of a killed worker is redelivered
    app.task(make_task(engine, keepalive), name=routing.ESTIMATE_TASK, bind=True, acks_late=True, **_TASK)
    follower = (VersionsFollower(store),) if isinstance(store, SharedVersions) else ()
    return metrics, (clock, heartbeat, keepalive, *follower)


def make_training_parts(app: Celery, settings: WorkerSettings, stop: Stop) -> Parts:
    """Register the task with the application, and return the worker's metrics and the threads beside the task."""
    client, metrics, worker_id = connect(settings.redis_url), TrainingMetrics(), new_worker_id()
    jobs, files, store = JobStore(client), JobFiles.open(settings), open_versions(settings)
    taker = JobTaker(jobs, files, metrics, worker_id, stop)
    runner = TrainingRunner(taker, store, settings, PaceBook(client))
    device = str(pick_device(settings.device))
    heartbeat = Heartbeat(client, "training", worker_id, device, metrics.text, lambda: runner.is_busy)
    preparer = Preparer(taker, settings)

    def send(job_id: str) -> object:
        return app.tasks[routing.TRAIN_TASK].apply_async(args=[job_id], task_id=job_id)

    caretaker = Caretaker(preparer, store, send)
    # acknowledged on receipt: a lost job is found again by its record
    app.task(caretaker.make_task(runner), name=routing.TRAIN_TASK, acks_late=False, **_TASK)
    clock = RedisClock(client)
    clock.use_for_messages()
    inspector = Inspector(DatasetFiles.open(settings), settings, stop, partial(InspectionLease, client))
    return metrics, (clock, heartbeat, caretaker, inspector)
