"""Traces, sent by OTLP where OpenTelemetry's own variables name an endpoint. Elsewhere a span is an object that does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from app.kit import logs

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# How long a process that ends waits for its last spans to be sent.
FLUSH_MILLISECONDS = 3000

tracer = trace.get_tracer("burnish")


def configure(process: str) -> None:
    """Sends this process's spans to the endpoint, if one is named. The SDK, which reads all other `OTEL_*` variables, is
    loaded only then."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME") or f"burnish-{process}"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Sends the spans that have ended."""
    send = getattr(trace.get_tracer_provider(), "force_flush", None)
    if send is not None:
        send(FLUSH_MILLISECONDS)


@contextmanager
def calling(name: str) -> Iterator[dict[str, str]]:
    """A span around a request to another process. Gives the headers that make it part of this request and this trace."""
    with tracer.start_as_current_span(name, kind=SpanKind.CLIENT):
        carried: dict[str, str] = {}
        propagate.inject(carried)
        if (id := logs.request_id.get()) is not None:
            carried["X-Request-ID"] = id
        yield carried


def traceparent() -> str | None:
    """The current span, as text for `continued`; None while nothing is traced."""
    carried: dict[str, str] = {}
    propagate.inject(carried)
    return carried.get("traceparent")


def continued(traceparent: str | None) -> Context | None:
    """The context in which spans are children of the span that the text names."""
    return propagate.extract({"traceparent": traceparent}) if traceparent else None


def fail(message: str) -> None:
    """Marks the current span as failed."""
    trace.get_current_span().set_status(Status(StatusCode.ERROR, message))
