"""Traces for OpenTelemetry that span gateway, queue and worker; nothing without :func:`configure_tracing`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .settings import CommonSettings

_tracer: Any = None


def configure_tracing(settings: CommonSettings, part: str) -> None:
    """Send traces by OTLP over HTTP if PPL_TRACING is set. OTEL_… variables say where. Raises ValueError.

    Args:
        part: name of this process's part, such as gateway.
    """
    if not settings.tracing:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError("PPL_TRACING needs OpenTelemetry: pip install 'pose-prior-learner[otel]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": f"ppl-{part}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use_tracer(provider.get_tracer("ppl"))


def use_tracer(tracer: Any) -> None:
    """Make spans by this tracer; none are made if it is None."""
    global _tracer
    _tracer = tracer


@contextmanager
def span(name: str, parents: Sequence[str | None] = (), **attributes: str | int) -> Iterator[Any]:
    """Record the block as a span; yield it, None without tracing.

    Args:
        parents: W3C traceparents. The first is the parent, or the surrounding span if there is none; the span has
            links to the others.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    contexts = [TraceContextTextMapPropagator().extract({"traceparent": parent}) for parent in parents if parent]
    links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in contexts[1:]]
    given = {f"ppl.{key}": value for key, value in attributes.items()}
    context = contexts[0] if contexts else None
    with _tracer.start_as_current_span(name, context=context, links=links, attributes=given) as current:
        yield current


def traceparent() -> str | None:
    """Return the W3C traceparent of the surrounding span; None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
