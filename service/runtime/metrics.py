"""The gateway's metrics for Prometheus, and those that workers send with their heartbeats."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service.contract.messages import WorkerHeartbeat

log = logging.getLogger(__name__)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The gateway's metrics in a registry of their own, so that two gateways can run in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ["method", "route"]
        self.requests = Counter(
            "ppl_http_requests", "Requests by route template and status", [*labels, "status"], registry=registry
        )
        self.seconds = Histogram(
            "ppl_http_request_seconds", "Time to the end of the answer", labels, buckets=_SECONDS, registry=registry
        )
        self.in_progress = Gauge("ppl_http_requests_in_progress", "Requests being answered", registry=registry)

        self.waiting = Gauge("ppl_queue_pictures", "Pictures that wait for a batch", registry=registry)
        self.pending = Gauge("ppl_pending_pictures", "Pictures that wait or are in flight", registry=registry)
        self.in_flight = Gauge("ppl_batches_in_flight", "Batches sent and not answered", registry=registry)
        self.batch_size = Histogram("ppl_batch_pictures", "Pictures in a batch", buckets=_SIZES, registry=registry)
        self.rejected = Counter("ppl_requests_rejected", "Requests refused with 429", registry=registry)
        self.late_replies = Counter("ppl_replies_late", "Replies to expired batches", registry=registry)
        self.lost = Counter("ppl_batches_lost", "Batches without a reply", registry=registry)
        self.unsent = Counter("ppl_batches_unsent", "Batches that could not be sent", registry=registry)
        self.decode_seconds = Histogram(
            "ppl_decode_seconds", "Time to decode and fit a request's pictures", buckets=_SECONDS, registry=registry
        )

        self.workers = Gauge("ppl_workers", "Live workers", ["kind"], registry=registry)
        self.messages = Gauge("ppl_queue_messages", "Messages in the queue of a kind", ["kind"], registry=registry)
        self.jobs = Gauge("ppl_jobs", "Training jobs by status", ["status"], registry=registry)
        self.redis_up = Gauge("ppl_redis_up", "Whether Redis answers", registry=registry)
        of = ["category"]
        answers = "Whether the Redis server of a category answers (PPL_REDIS_BY_CATEGORY)"
        self.category_redis_up = Gauge("ppl_category_redis_up", answers, of, registry=registry)
        self.category_workers = Gauge(
            "ppl_category_workers", "Live inference workers at that server", of, registry=registry
        )

    def own_exposition(self) -> bytes:
        """Return this gateway's metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def exposition(self, workers: Iterable[WorkerHeartbeat] = (), gateways: Iterable[Exposition] = ()) -> bytes:
        """Return all metrics in Prometheus's text format, those of workers with a label ``worker``.

        Args:
            gateways: where several serve one address, the metrics of all, to return with a label ``gateway``.
        """
        relayed = [*gateways, *(Exposition("worker", worker.id, worker.metrics) for worker in workers)]
        own = [] if gateways else [self.own_exposition()]
        return b"".join([*own, generate_latest(_Relayed(relayed))])


class Exposition(NamedTuple):
    """Metrics of a part in Prometheus's text format, and the label that names the part."""

    label: str
    part: str
    text: str


class _Relayed(Collector):
    """Collector of the metrics of several parts: families of the same name are merged, samples are labelled."""

    def __init__(self, parts: Iterable[Exposition]) -> None:
        self._parts = list(parts)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for label, part, text in self._parts:
            try:
                parsed = list(text_string_to_metric_families(text))
            except ValueError as error:
                log.warning("metrics not readable: %s=%s: %s", label, part, error)
                continue
            for family in parsed:
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, label: part}, sample.value, sample.timestamp)
        yield from families.values()
