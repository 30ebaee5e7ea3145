"""Errors of engines reach callers in the one error body, with the caller's names.

The engine here is a real server that answers as each request tells it to: with `reply` and `status`, or with `events`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from app.kit.database import DEFAULT_PROJECT, utc_now, writing
from app.models.service import find
from app.models.tables import Engine
from tests.chat.conftest import ASK
from tests.conftest import serving

TOO_LONG = "This model's maximum context length is 8 tokens. However, you requested 9."


class Died(Exception):
    """The engine's process ended."""


def create_engine() -> FastAPI:
    engine = FastAPI()

    @engine.post("/v1/{path:path}")
    async def answer(path: str, request: Request) -> Response:
        sent = await request.json()

        def said(value: Any) -> str:
            return json.dumps(value).replace("ID", sent["model"])

        async def events() -> AsyncIterator[str]:
            for each in sent["events"]:
                if each == "dies":
                    raise Died
                yield f"data: {each if isinstance(each, str) else said(each)}\n\n"

        if "events" in sent:
            return StreamingResponse(events(), media_type="text/event-stream")
        if isinstance(sent["reply"], str):
            return PlainTextResponse(sent["reply"], sent["status"])
        return JSONResponse(json.loads(said(sent["reply"])), sent["status"])

    return engine


@pytest.fixture(scope="module")
def engine(service: str) -> Iterator[str]:
    """The id of the demo base, which such an engine serves."""
    with serving(create_engine()) as url:
        with writing() as session:
            model, now = find(session, DEFAULT_PROJECT, "demo-base"), utc_now()
            assert model is not None
            session.add(Engine(model_id=model.id, status="ready", url=url, wanted_at=now, last_used_at=now))
        yield model.id


def of_vllm(code: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error as vLLM writes it."""
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": code}}


@pytest.mark.parametrize(
    ("sent_status", "reply", "status", "code", "param"),
    [
        (400, of_vllm(400, "`top_logprobs` of ID is wrong", "top_logprobs"), 400, "invalid_value", "top_logprobs"),
        (400, of_vllm(400, TOO_LONG), 400, "context_length_exceeded", None),
        (400, {"error": {"message": "No n.", "code": "unsupported_parameter", "param": "n"}}, 400, "unsupported_parameter", "n"),
        (422, of_vllm(422, "no"), 422, "invalid_value", None),
        (501, of_vllm(501, "Only base64 data URLs are supported for now."), 422, "unsupported", None),
        (404, of_vllm(404, "The model `ID` does not exist.", "model"), 503, "engine_unavailable", "model"),
        (503, of_vllm(503, "Service unavailable"), 503, "engine_unavailable", None),
        (500, of_vllm(500, "EngineCore encountered an issue with ID"), 502, "engine_error", None),
        (500, "Internal Server Error", 502, "engine_error", None),
        (400, {"object": "error"}, 400, "invalid_value", None),
        (200, "<html>", 502, "engine_error", None),
    ],
)  # fmt: skip
def test_an_engine_s_error_is_the_one_error_body(
    client: httpx.Client, engine: str, sent_status: int, reply: Any, status: int, code: str, param: str | None
) -> None:
    answer = client.post("/v1/chat/completions", json=ASK | {"status": sent_status, "reply": reply})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["hint"]
    assert engine not in answer.text
    if "ID" in json.dumps(reply):
        assert "demo-base" in error["message"]
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_answers_tell_the_model_by_what_was_sent(client: httpx.Client, engine: str) -> None:
    for name in ("demo-base", engine):
        body = ASK | {"model": name, "status": 200, "reply": {"model": "ID", "choices": []}}
        assert client.post("/v1/chat/completions", json=body).json()["model"] == name


def streamed(client: httpx.Client, *events: Any) -> list[Any]:
    """What a client is sent of a stream of these events."""
    body = ASK | {"stream": True, "events": events}
    lines = client.post("/v1/chat/completions", json=body).text.splitlines()
    return [line.removeprefix("data: ") for line in lines if line]


def test_an_error_in_the_middle_of_a_stream_is_the_one_error_body(client: httpx.Client, engine: str) -> None:
    piece = {"model": "ID", "choices": [{"delta": {"content": "ID"}}]}
    first, second, done = streamed(client, piece, of_vllm(500, "ID failed"), "[DONE]")
    # What the model wrote stays as it is, whatever it looks like.
    assert json.loads(first) == {"model": "demo-base", "choices": [{"delta": {"content": engine}}]}
    error = json.loads(second)["error"]
    assert (error["code"], error["type"], error["message"]) == ("engine_error", "server_error", "demo-base failed")
    assert error["hint"]
    assert done == "[DONE]"


def test_a_stream_whose_engine_dies_ends_with_an_error(client: httpx.Client, service: str, engine: str) -> None:
    piece = {"model": "ID", "choices": [{"index": 0, "delta": {"content": "so far"}}]}
    *_, last = streamed(client, piece, "dies")
    assert json.loads(last)["error"]["code"] == "engine_unavailable"
    sdk = openai.OpenAI(base_url=f"{service}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="stopped in the middle"):
        list(sdk.chat.completions.create(**ASK, stream=True, extra_body={"events": [piece, "dies"]}))  # type: ignore[call-overload]
