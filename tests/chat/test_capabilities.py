"""Tools, formats and reasoning: asked of the engine where it can do it, else refused with a sentence before it generates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from app.kit.database import DEFAULT_PROJECT, utc_now, writing
from app.kit.ids import new_id
from app.models.chat_templates import text_of
from app.models.service import find
from app.models.tables import Engine, EngineAdapter, Model
from tests.chat.conftest import ASK
from tests.conftest import serving
from tests.models.published import published

TOOLS = {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]}
JSON_OBJECT = {"response_format": {"type": "json_object"}}
EMBEDDED = {"engine": "embedded", "tools": None, "reasoning": None, "response_format": False}
VLLM = {"engine": "vllm", "tools": "hermes", "reasoning": "qwen3", "response_format": True}
OFF = {"enable_thinking": False, "thinking": False}


class Engines:
    """An engine that answers everything and keeps what it was asked, and models on it."""

    def __init__(self, client: httpx.Client, url: str, heard: list[dict[str, Any]]) -> None:
        self.client, self.url, self.heard = client, url, heard

    def base(self, template: str, features: dict[str, Any]) -> str:
        """A base model with this template, served by an engine with these features."""
        name = self._add("base", template, None)
        with writing() as session:
            now = utc_now()
            session.add(
                Engine(
                    model_id=name, status="ready", url=self.url, generation=1, wanted_at=now, last_used_at=now,
                    features=features,
                )
            )  # fmt: skip
        return name

    def adapter(self, base: str, template: str) -> str:
        """An adapter on it, with a template of its own."""
        name = self._add("adapter", template, base)
        with writing() as session:
            session.add(EngineAdapter(model_id=name, engine_id=base, generation=1))
        return name

    def _add(self, kind: str, template: str, base: str | None) -> str:
        name = new_id("tune")
        with writing() as session:
            session.add(
                Model(
                    id=name, name=name, project_id=DEFAULT_PROJECT, kind=kind, source="job:x", status="ready",
                    chat_template=template, base_model_id=base,
                )
            )  # fmt: skip
        return name

    def ask(self, model: str, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=ASK | {"model": model} | fields)

    def sent(self, model: str, **fields: Any) -> dict[str, Any]:
        """What the engine was sent."""
        self.ask(model, **fields).raise_for_status()
        return self.heard[-1]


@pytest.fixture
def engines(client: httpx.Client) -> Iterator[Engines]:
    heard: list[dict[str, Any]] = []
    engine = FastAPI()

    @engine.post("/v1/chat/completions")
    async def answer(request: Request) -> dict[str, Any]:
        heard.append(await request.json())
        return {"model": heard[-1]["model"], "choices": []}

    with serving(engine) as url:
        yield Engines(client, url, heard)


def refusal(answer: httpx.Response) -> tuple[str, str]:
    """The field that was refused, and all that was said."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "unsupported")
    assert error["hint"]
    return error["param"], f"{error['message']} {error['hint']}"


@pytest.mark.parametrize("fields", [TOOLS, TOOLS | {"tool_choice": "none"}, {"functions": TOOLS["tools"]}])
def test_a_template_of_no_family_that_calls_tools_is_refused_before_an_engine_is_started(
    client: httpx.Client, fields: dict[str, Any]
) -> None:
    param, _ = refusal(client.post("/v1/chat/completions", json=ASK | fields))
    assert param in fields
    with writing() as session:
        model = find(session, DEFAULT_PROJECT, "demo-base")
        assert model is not None
        assert session.get(Engine, model.id) is None


def test_tools_go_to_an_engine_that_reads_their_calls(engines: Engines) -> None:
    base = engines.base(published("qwen3"), VLLM)
    assert engines.sent(base, **TOOLS)["tools"] == TOOLS["tools"]
    assert engines.sent(engines.adapter(base, published("qwen3")), **TOOLS)["tools"] == TOOLS["tools"]
    # Another template of the same family: the engine's parser reads it all the same.
    assert engines.sent(engines.adapter(base, published("qwen2_5")), **TOOLS)["tools"] == TOOLS["tools"]


def test_tools_are_refused_where_the_engine_s_parser_is_not_the_template_s(engines: Engines) -> None:
    base = engines.base(published("qwen3"), VLLM)
    for template in (text_of("chatml"), published("llama3_1")):
        assert refusal(engines.ask(engines.adapter(base, template), **TOOLS))[0] == "tools"
    assert refusal(engines.ask(engines.base(published("llama3_1"), VLLM | {"tools": None}), **TOOLS))[0] == "tools"
    assert not engines.heard


def test_the_embedded_engine_is_asked_for_no_tools_and_no_format(engines: Engines) -> None:
    base = engines.base(published("qwen3"), EMBEDDED)
    for fields in (TOOLS, JSON_OBJECT):
        param, said = refusal(engines.ask(base, **fields))
        assert param in fields
        assert "'embedded'" in said
        assert "vLLM" in said
    assert not engines.heard
    assert engines.sent(base, response_format={"type": "text"})


def test_a_format_goes_to_an_engine_that_keeps_to_it(engines: Engines) -> None:
    base = engines.base(text_of("chatml"), VLLM)
    assert engines.sent(base, **JSON_OBJECT)["response_format"] == JSON_OBJECT["response_format"]


def test_the_engine_is_told_which_answers_have_no_reasoning(engines: Engines) -> None:
    def arguments(model: str, **fields: Any) -> Any:
        return engines.sent(model, **fields).get("chat_template_kwargs")

    qwen3 = engines.base(published("qwen3"), VLLM)
    assert arguments(qwen3) is None
    assert arguments(engines.adapter(qwen3, published("qwen3"))) is None
    assert arguments(engines.adapter(qwen3, text_of("chatml"))) == OFF
    # DeepSeek-R1's template leaves reasoning out in training, so fine-tunes of it learn none.
    r1 = engines.base(published("deepseek_r1_distill"), VLLM)
    assert arguments(r1) is None
    assert arguments(engines.adapter(r1, published("deepseek_r1_distill"))) == OFF
    # Qwen3.5's smaller models reason only when asked.
    small = engines.base(published("qwen3_5_nothink"), VLLM)
    assert arguments(small) == {"enable_thinking": False}
    assert arguments(small, chat_template_kwargs={"enable_thinking": True}) == {"enable_thinking": True}
    assert arguments(small, reasoning_effort="high") is None
    assert arguments(engines.base(text_of("chatml"), VLLM)) is None
