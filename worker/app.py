"""The Celery applications of the two kinds of worker, and the parts that their tasks drive."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from celery import Celery, Task

from model.network.device import pick_device
from model.predictor import Predictor
from service.contract import routing
from service.contract.datasets.store import DatasetFiles
from service.contract.jobs.files import JobFiles
from service.contract.jobs.paces import PaceBook
from service.contract.jobs.store import JobStore
from service.contract.routing import Kind
from service.contract.versions.store import VersionStore
from worker.caretaker import Caretaker
from worker.heartbeat import Heartbeat, Keepalive, new_worker_id
from worker.inference.engine import InferenceEngine
from worker.inference.resident_models import ModelRegistry
from worker.jobs.held_job import Stop
from worker.jobs.job_taking import Casework
from worker.metrics import InferenceMetrics, Metrics, TrainingMetrics
from worker.settings import WorkerSettings
from worker.training.runner import TrainingRunner
from worker.uploads.dataset_inspector import Inspector
from worker.uploads.preparer import Preparer

from .redis_retries import connect

logger = logging.getLogger(__name__)


class Part(Protocol):
    """What a worker of one kind has beside its task."""

    @property
    def metrics(self) -> Metrics:
        """What it counts."""

    def start(self) -> None:
        """Called once the worker consumes."""

    def stop(self) -> None:
        """Called when it does no more."""


class InferencePart:
    """Resident models and the threads around them; registers ``ppl.estimate``."""

    def __init__(self, app: Celery, settings: WorkerSettings, stop: Stop) -> None:
        client = connect(settings.redis_url)
        self.metrics = InferenceMetrics()
        device = str(pick_device(settings.device))
        models = ModelRegistry(
            VersionStore(settings.data_root),
            settings.models_resident,
            lambda folder: Predictor.load(folder, device),
            self.metrics,
        )
        engine = InferenceEngine(client, models, self.metrics, lambda: stop.requested)
        self.heartbeat = Heartbeat(client, "inference", new_worker_id(), device, self.metrics.text, lambda: engine.busy)
        self.keepalive = keepalive = Keepalive(client, "inference")

        def estimate(task: Task, message: dict[str, Any]) -> None:
            with keepalive.holding((task.request.properties or {}).get("delivery_tag")):
                engine.handle(message)

        # acknowledged when answered: what a killed worker held is delivered again
        app.task(estimate, name=routing.ESTIMATE_TASK, bind=True, acks_late=True, ignore_result=True)

    def start(self) -> None:
        """See Part."""
        self.heartbeat.start()
        self.keepalive.start()

    def stop(self) -> None:
        """See Part."""
        self.keepalive.stop()
        self.heartbeat.stop()


class TrainingPart:
    """The trainer, the caretaker and the inspector beside it, and the heartbeat; registers ``ppl.train``."""

    def __init__(self, app: Celery, settings: WorkerSettings, stop: Stop) -> None:
        client = connect(settings.redis_url)
        worker_id = new_worker_id()
        self.metrics = TrainingMetrics()
        jobs, files = JobStore(client), JobFiles(settings.data_root)
        casework = Casework(jobs, files, self.metrics, worker_id, stop)
        preparer = Preparer(casework, files, settings, self.metrics)
        store = VersionStore(settings.data_root)
        runner = TrainingRunner(jobs, files, store, casework, settings, self.metrics, PaceBook(client))
        device = str(pick_device(settings.device))
        self.heartbeat = Heartbeat(client, "training", worker_id, device, self.metrics.text, lambda: runner.busy)

        def train(job_id: str) -> None:
            runner.run(job_id)
            if stop.requested:
                self.caretaker.hand_on(job_id)

        # acknowledged when taken: the job's record is the truth, and brings a lost job back
        task = app.task(train, name=routing.TRAIN_TASK, acks_late=False, ignore_result=True)

        def send(job_id: str) -> None:
            task.apply_async(args=[job_id], task_id=job_id)

        self.caretaker = Caretaker(jobs, files, casework, preparer, send, stop, store)
        self.inspector = Inspector(DatasetFiles(settings.data_root), settings, stop)

    def start(self) -> None:
        """See Part."""
        self.heartbeat.start()
        self.caretaker.start()
        self.inspector.start()

    def stop(self) -> None:
        """See Part."""
        self.inspector.stop()
        self.caretaker.stop()
        self.heartbeat.stop()


def make_app(kind: Kind, settings: WorkerSettings) -> Celery:
    """The Celery application of a kind of worker, without its task."""
    app = Celery("ppl", set_as_current=False)
    app.conf.update(routing.celery_options(kind, settings.redis_url))
    app.conf.update(
        broker_connection_max_retries=None,
        # On a lost connection a batch is worked out and answered all the same: a solo pool can't interrupt its
        # task, and a second delivery finds no pixels. A job is not concerned: its message is acknowledged early.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
    )
    return app


def make_part(kind: Kind, app: Celery, settings: WorkerSettings, stop: Stop) -> Part:
    """The parts of a kind of worker, its task registered with the application."""
    return InferencePart(app, settings, stop) if kind == "inference" else TrainingPart(app, settings, stop)
