"""Logging, set up the same way in every process of the service: one line format, on standard error."""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar
from typing import TextIO

from opentelemetry import trace
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from app.settings import get_settings

# The id of the request that this task, and the threads that it uses, work on.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# These write a line for each message or request, also when nothing happens; at `debug` they may.
CHATTY = (
    "celery.worker.strategy",
    "celery.app.trace",
    "celery.beat",
    "httpx",
    "httpcore",
    "botocore",
    "urllib3",
    "fsspec",
)


def configure() -> None:
    """Sets up logging for this process by `BURNISH_LOG_FORMAT` and `BURNISH_LOG_LEVEL`, in place of what libraries do."""
    level = get_settings().log_level
    root = logging.getLogger()
    root.handlers = [handler(sys.stderr)]
    root.setLevel(level.upper())
    if level != "debug":
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def handler(stream: TextIO) -> logging.Handler:
    """What writes log records to a stream, in the format of the settings and with the request's id."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_json() if get_settings().log_format == "json" else _text())
    handler.addFilter(_add_context)
    return handler


def _add_context(record: logging.LogRecord) -> bool:
    """Adds the ids of the request and of the trace to a log record."""
    if (id := request_id.get()) is not None:
        record.request_id = id
    if (span := trace.get_current_span().get_span_context()).is_valid:
        record.trace_id = trace.format_trace_id(span.trace_id)
    return True


def _text() -> logging.Formatter:
    line = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s [%(request_id)s]: %(message)s"
    formatter = logging.Formatter(line, datefmt="%Y-%m-%dT%H:%M:%S", defaults={"request_id": "-"})
    formatter.converter = time.gmtime
    return formatter


def _json() -> logging.Formatter:
    fields = {"levelname": "level", "name": "logger", "exc_info": "exception"}
    unwanted = [*RESERVED_ATTRS, "color_message"]  # uvicorn's, for terminals
    line = "%(levelname)s %(name)s %(message)s"
    return JsonFormatter(line, rename_fields=fields, timestamp="time", reserved_attrs=unwanted)
