"""burnish chat, through the real gateway to an engine that only repeats what it was asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from app.kit.database import utc_now, writing
from app.models.tables import Engine, Model
from tests.cli.conftest import Run
from tests.cli.terminal import Terminal, run_command
from tests.conftest import serving

asked: list[dict[str, Any]] = []


def parrot() -> FastAPI:
    """An engine: OpenAI's stream of chunks, with the last message in it, word by word. 'broken' ends in the middle."""
    engine = FastAPI()

    @engine.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        asked.append(body)
        words = body["messages"][-1]["content"].split(" ")

        async def stream() -> AsyncIterator[str]:
            for word in ["You", "said", *words]:
                chunk = {"model": body["model"], "choices": [{"delta": {"content": word + " "}, "finish_reason": None}]}
                yield f"data: {json.dumps(chunk)}\n\n"
            if words != ["broken"]:
                yield 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'

        return StreamingResponse(stream(), media_type="text/event-stream")

    return engine


@pytest.fixture(scope="module", autouse=True)
def engine(service: str) -> Iterator[None]:
    """The parrot serves demo-base."""
    with serving(parrot()) as url, writing() as session:
        base = session.query(Model).filter_by(name="demo-base").one()
        now = utc_now()
        session.add(Engine(model_id=base.id, status="ready", url=url, generation=1, wanted_at=now, last_used_at=now))
        session.commit()
        yield


def test_one_message_is_answered(run: Run) -> None:
    answer = run("chat", "demo-base", "hello there", "--system", "Be brief.", "--temperature", 0, "--max-tokens", 9)
    assert (answer.exit_code, answer.stdout.strip()) == (0, "You said hello there")
    assert asked[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello there"},
    ]
    assert (asked[-1]["temperature"], asked[-1]["max_tokens"], asked[-1]["stream"]) == (0, 9, True)


def test_what_is_piped_in_is_the_message(run: Run) -> None:
    assert run("chat", "demo-base", input="from a pipe\n").stdout.strip() == "You said from a pipe"


def test_control_characters_in_an_answer_reach_no_terminal(run: Run) -> None:
    assert run("chat", "demo-base", "\x1b[2J").stdout.strip() == "You said �[2J"


def test_an_answer_that_breaks_off_is_a_failure(run: Run) -> None:
    answer = run("chat", "demo-base", "broken")
    assert answer.exit_code == 1
    assert "broke off" in answer.stderr


def test_an_unknown_model_is_told_with_a_hint(run: Run) -> None:
    answer = run("chat", "nobody", "hello")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "'nobody' does not exist" in answer.stderr
    assert "Hint:" in answer.stderr


def test_a_conversation_remembers_what_was_said(service: str) -> None:
    with Terminal(service, "chat", "demo-base") as terminal:
        terminal.until("> ")
        terminal.press("first\n")
        terminal.until("You said first")
        terminal.until("> ")
        terminal.press("second\n")
        terminal.until("You said second")
        terminal.until("> ")
        terminal.press("\x04")
        assert terminal.end() == 0
    assert [message["content"].strip() for message in asked[-1]["messages"]] == ["first", "You said first", "second"]


def test_a_refused_message_does_not_end_the_conversation() -> None:
    with serving(FastAPI()) as stranger, Terminal(stranger, "chat", "demo-base") as terminal:
        terminal.until("> ")
        terminal.press("hello\n")
        terminal.until("not as Burnish does")
        terminal.until("> ")


def test_nobody_answers() -> None:
    assert run_command("http://127.0.0.1:1", "chat", "demo-base", "hello").exit_code == 1
