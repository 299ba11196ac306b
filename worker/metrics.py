"""Prometheus metrics of the workers. Inference and training share no name.

Counters begin at 0 for each label value that is known: Prometheus does not see the first increase of one that appears
with a 1, so an alert on a single failed job would not fire.
"""

from __future__ import annotations

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.contract.jobs.job import JobStatus
from service.contract.versions.quality import Verdict

NOT_MEASURED = "not measured"
_BATCH_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics(CollectorRegistry):
    """A separate registry, so that two workers can run in one process."""

    def text(self) -> str:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self).decode()


class InferenceMetrics(Metrics):
    """Metrics of an inference worker."""

    def __init__(self) -> None:
        super().__init__()
        outcomes = "Batches by outcome: ok or an error code"
        self.batches = Counter("ppl_inference_batches", outcomes, ["outcome"], registry=self)
        self.batches.labels("ok")
        self.images = Counter("ppl_inference_images", "Pictures whose poses were estimated", registry=self)
        seconds = "Time the model took for a batch"
        self.seconds = Histogram("ppl_inference_batch_seconds", seconds, buckets=_BATCH_SECONDS, registry=self)
        self.loads = Counter("ppl_models_loaded", "Versions read from disk", registry=self)
        self.evictions = Counter("ppl_models_evicted", "Versions evicted from memory", registry=self)
        self.resident = Gauge("ppl_models_resident", "Versions in memory", registry=self)


class TrainingMetrics(Metrics):
    """Metrics of a training worker. The gauges describe the current job and are 0 between jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Gauge("ppl_training_step", "Steps done", registry=self)
        self.total_steps = Gauge("ppl_training_total_steps", "Steps to do", registry=self)
        self.steps_per_s = Gauge("ppl_training_steps_per_second", "Recent speed", registry=self)
        self.loss = Gauge("ppl_training_loss", "Last losses by name", ["name"], registry=self)
        self.steps = Counter("ppl_training_steps", "Steps done by this process", registry=self)
        self.checkpoints = Counter("ppl_training_checkpoints", "Checkpoints written", registry=self)
        self.jobs = Counter("ppl_training_jobs", "Jobs by outcome", ["outcome"], registry=self)
        for status in JobStatus:
            if status.ended:
                self.jobs.labels(str(status))
        self.versions = Counter("ppl_training_versions", "Versions by the verdict on them", ["verdict"], registry=self)
        for verdict in (*get_args(Verdict), NOT_MEASURED):
            self.versions.labels(verdict)
        self.quality = Gauge("ppl_training_quality", "Quality of the last version by measure", ["name"], registry=self)
        outcomes = "Pictures of uploads by outcome"
        self.pictures = Counter("ppl_preparation_pictures", outcomes, ["outcome"], registry=self)
        for outcome in ("read", "skipped"):
            self.pictures.labels(outcome)

    def reset_job_gauges(self) -> None:
        """Set the current job's gauges to 0."""
        for gauge in (self.step, self.total_steps, self.steps_per_s):
            gauge.set(0)
        self.loss.clear()
