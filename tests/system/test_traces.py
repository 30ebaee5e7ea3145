"""A job and a chat are one trace each, from the request to the engine. The receiver is real, and so are the processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.conftest import eventually
from tests.system.service import Service

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# What an attempt tells of, and which process.
PHASES = ("trainer loading", "trainer training", "deploy")


class Receiver:
    """Keeps every span that is sent to it by OTLP over HTTP, as (service, span)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in request.resource_spans:
                    names = {each.key: each.value.string_value for each in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        spans.extend((names["service.name"], span) for span in scope.spans)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def named(self, service: str, name: str) -> list[Any]:
        return [span for of, span in list(self.spans) if (of, span.name) == (service, name)]

    def one(self, service: str, name: str, parent: bytes | None = None) -> Any:
        """The span of this name that is there or comes; with `parent`, the one below that span."""

        def look() -> list[Any]:
            return [span for span in self.named(service, name) if parent is None or span.parent_span_id == parent]

        return eventually(look, 30, f"the span '{name}' of {service}")[0]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()


@pytest.fixture(scope="module")
def traced(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service, which sends its spans to the receiver."""
    service = Service.start(
        {
            "BURNISH_HOME": str(tmp_path_factory.mktemp("traced")),
            "BURNISH_ENGINE": "embedded",
            "BURNISH_LOG_FORMAT": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OMP_NUM_THREADS": "1",
        }
    )
    yield service
    service.stop()


def test_a_job_and_a_chat_are_one_trace_each(traced: Service, receiver: Receiver, rows: bytes) -> None:
    dataset = traced.upload(b"\n".join(rows.splitlines()[:16]))
    job = traced.ended(traced.create(dataset, hyperparameters={"max_steps": 2}))
    assert job["status"] == "succeeded", job["error"]
    request = receiver.one("burnish-api", "POST /jobs")
    attempt = receiver.one("burnish-training", "attempt")
    assert (attempt.parent_span_id, attempt.trace_id) == (request.span_id, request.trace_id)
    for phase in PHASES:
        span = receiver.one("burnish-training", phase, attempt.span_id)
        assert attempt.start_time_unix_nano < span.start_time_unix_nano < span.end_time_unix_nano
        assert span.end_time_unix_nano <= attempt.end_time_unix_nano
    deploy = receiver.one("burnish-training", "deploy")
    receiver.one("burnish-training", "POST /v1/completions", deploy.span_id)

    body = {"model": job["model"]["name"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    told = {"traceparent": f"00-{TRACE}-{SPAN}-01", "X-Request-ID": "chat-1"}
    answer = traced.client.post("/v1/chat/completions", json=body, headers=told).raise_for_status()
    assert answer.headers["X-Request-ID"] == "chat-1"
    chat = receiver.one("burnish-api", "POST /v1/chat/completions", bytes.fromhex(SPAN))
    call = receiver.one("burnish-api", "POST /v1/chat/completions", chat.span_id)
    assert {chat.trace_id.hex(), call.trace_id.hex()} == {TRACE}
    assert (chat.kind, call.kind) == (chat.SPAN_KIND_SERVER, call.SPAN_KIND_CLIENT)
    assert "chat-1" in {each.value.string_value for each in chat.attributes}
    assert TRACE in next(line for line in log_lines(traced) if "chat-1" in line)


def log_lines(service: Service) -> list[str]:
    return (Path(service.home) / "logs/api.log").read_text().splitlines()
