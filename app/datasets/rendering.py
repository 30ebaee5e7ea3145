"""Asks the processes that render rows: `python -m worker.renderer`. Chat templates are rendered by transformers alone,
which the API's own process does not load."""

from __future__ import annotations

import json
from typing import Any

from app.kit.helpers import HelperDied, Helpers, unavailable

# A template is a stranger's program: it may never end.
ANSWER_SECONDS = 600.0
WAIT_SECONDS = 60.0

# Which of very many alike rows a check compares depends on the order of hashes: let it be the same each time.
RENDERERS = Helpers("worker.renderer", places=2, environment={"PYTHONHASHSEED": "0"})


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Sends a request of `worker/renderer/__main__.py` to a free process and returns its answer. Blocks.

    Raises `Unavailable` (`renderer_unavailable`) where the process dies of it, does not answer in time, or none gets free.
    """
    renderer = RENDERERS.take(WAIT_SECONDS)
    if renderer is None:
        raise unavailable("renderer_unavailable", "All processes that render rows are busy.")
    try:
        renderer.send(json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(renderer.answer(ANSWER_SECONDS))
        return answer
    except HelperDied as died:
        message = "The process that renders rows died of this request, or took too long."
        raise unavailable("renderer_unavailable", message) from died
    finally:
        RENDERERS.give_back(renderer)
