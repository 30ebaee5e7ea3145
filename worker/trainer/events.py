"""The trainer's voice: JSON events, one a line, on what was standard output when it started."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

Emit = Callable[..., None]


def claim_stdout() -> Emit:
    """Keeps standard output for events and points everybody else's prints at standard error.

    Returns `emit(type, **fields)`, which writes one line. A number that JSON does not know (NaN, infinity) becomes null.
    """
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(type: str, **fields: Any) -> None:
        event = {"type": type, **{name: _json_number(value) for name, value in fields.items()}}
        stream.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")

    return emit


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
