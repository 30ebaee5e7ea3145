"""Asks the processes that render rows: `python -m worker.renderer`. Chat templates are rendered by transformers alone,
which the API's own process does not load.

A template is a stranger's program, which may never end. So rendering is bounded in time, and no project gets all processes.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from app.kit.errors import InvalidValue
from app.kit.helpers import Helper, HelperDied, HelperLate, Helpers, unavailable
from app.projects.acting import actor

WAIT_SECONDS = 30.0
# A new process imports transformers, and a large tokenizer takes seconds to read.
LOAD_SECONDS = 120.0


class Bounds(NamedTuple):
    """How long a request may render, and how many places it leaves free for shorter ones."""

    seconds: float
    leaving: int


# Of a request that looks at one row or a few. These take milliseconds on an idle machine.
QUICK = Bounds(20.0, leaving=0)
# Requests that may take longer, by what they do.
BOUNDS = {"check": Bounds(300.0, leaving=1)}

# Which of very many alike rows a check compares depends on the order of hashes: let it be the same each time.
RENDERERS = Helpers("worker.renderer", places=3, of_one=2, environment={"PYTHONHASHSEED": "0"})


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Sends a request of `worker/renderer/__main__.py` to a free process and returns its answer. Blocks.

    Raises `InvalidValue` (`render_timeout`) if rendering takes too long, and `Unavailable` (`renderer_unavailable`) if the
    process dies or none gets free.
    """
    bounds = BOUNDS.get(request["do"], QUICK)
    renderer = RENDERERS.take(WAIT_SECONDS, bounds.leaving, owner=actor().project_id)
    if renderer is None:
        raise unavailable("renderer_unavailable", "All processes that render rows for this project are busy.")
    try:
        renderer.send(json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(renderer.answer(LOAD_SECONDS))
        if "loaded" in answer:
            renderer.idle = False
            answer = _rendered(renderer, bounds.seconds)
        return answer
    except HelperDied as died:
        raise unavailable("renderer_unavailable", "The process that renders rows died of this request.") from died
    finally:
        RENDERERS.give_back(renderer)


def _rendered(renderer: Helper, seconds: float) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(renderer.answer(seconds))
        return answer
    except HelperLate:
        raise InvalidValue(
            f"Rendering had not ended after {seconds:g} s and was stopped.",
            param="chat_template",
            code="render_timeout",
            hint="A chat template with nested loops may never end. Use another chat_template, or shorter or fewer rows.",
        ) from None
