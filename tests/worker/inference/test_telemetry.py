"""A request's log lines and spans, from the gateway through the queue to a real inference worker."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from model.predictor import Predictor
from service.contract import routing, tracing
from service.contract.jobs.store import JobStore, NewJob
from service.contract.logs import bind_ids, configure_logging
from service.contract.versions.store import VersionStore
from service.gateway.app import create_app
from service.runtime.settings import Settings
from tests.worker.conftest import picture
from worker.inference import InferenceEngine, ResidentModels
from worker.jobs import Stop
from worker.metrics import InferenceMetrics


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use_tracer(provider.get_tracer("ppl"))
    yield exporter
    tracing.use_tracer(None)
    provider.shutdown()


@pytest.fixture
def json_log() -> Iterator[Callable[[], list[dict[str, str]]]]:
    """The lines logged so far as JSON."""
    root, written = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    handler = configure_logging("INFO", "json", "%(message)s")
    handler.setStream(written)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.removeHandler(handler)
    root.handlers[:] = before
    root.setLevel(level)


async def test_trace_and_log_go_from_the_gateway_through_the_queue_to_the_worker(
    spans: InMemorySpanExporter,
    redis_client: redis.Redis,
    redis_url: str,
    data_root: Path,
    publish: Callable[..., str],
    json_log: Callable[[], list[dict[str, str]]],
) -> None:
    publish()
    models = ResidentModels(VersionStore(data_root), 1, partial(Predictor.load, device="cpu"), InferenceMetrics())
    engine = InferenceEngine(redis_client, models, InferenceMetrics(), Stop())

    def work() -> None:
        _, data = redis_client.brpop([routing.queue_key("inference")], timeout=30)
        message = json.loads(base64.b64decode(json.loads(data)["body"]))[0][0]
        engine.handle(message)

    app = create_app(Settings(redis_url=redis_url, data_root=data_root, sample_categories=False))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    worker = threading.Thread(target=work)
    worker.start()
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        answer = await http.post(
            "/estimate",
            data={"category": "dog", "version": "v1"},
            files={"images": picture()},
            headers={"traceparent": parent, "X-Request-ID": "request-7"},
        )
    worker.join()
    assert answer.status_code == 200, answer.text

    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"POST /estimate", "send batch", "estimate", "load", "model"}
    assert {span.context.trace_id for span in found.values()} == {0x0AF7651916CD43DD8448EB211C80319C}
    parents = {name: span.parent.span_id for name, span in found.items()}
    assert parents["POST /estimate"] == 0xB7AD6B7169203331
    assert parents["send batch"] == found["POST /estimate"].context.span_id
    assert parents["estimate"] == found["send batch"].context.span_id
    assert parents["load"] == parents["model"] == found["estimate"].context.span_id
    assert found["POST /estimate"].attributes == {"ppl.request": "request-7", "http.response.status_code": 200}

    lines = json_log()
    loaded = next(line for line in lines if line["event"].startswith("model loaded"))
    batch = found["estimate"].attributes["ppl.batch"]
    assert (loaded["request"], loaded["batch"], loaded["category"], loaded["level"]) == (
        "request-7",
        batch,
        "dog",
        "info",
    )


def test_job_keeps_the_span_of_its_request(spans: InMemorySpanExporter, redis_client: redis.Redis) -> None:
    jobs = JobStore(redis_client)
    with tracing.span("request"):
        job = jobs.create(NewJob("dog", {}, 10))
    with tracing.span("work on job", [jobs.record(job.id).traceparent]):
        pass
    request, work = sorted(spans.get_finished_spans(), key=lambda span: span.name)
    assert work.parent.span_id == request.context.span_id


def test_json_lines_have_ids_and_tracebacks(json_log: Callable[[], list[dict[str, str]]]) -> None:
    log = logging.getLogger("worker.jobs")
    with bind_ids(job="bound"):
        log.info("checkpoint saved")
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("job=%s: failed, version=%s", "named", "v1")
    log.info("after")
    saved, failed, after = json_log()
    assert (saved["job"], saved["logger"], saved["event"]) == ("bound", "worker.jobs", "checkpoint saved")
    assert saved["time"].endswith("Z")
    assert (failed["job"], failed["version"], failed["level"]) == ("named", "v1", "error")
    assert "ValueError: no" in failed["exception"]
    assert "job" not in after
