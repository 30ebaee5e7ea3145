"""The gateway before an engine answers: who is asked for, who waits, and what a caller is told. With engines: tests/system."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from app.chat.cache_salt import cache_salt
from app.kit.database import DEFAULT_PROJECT, reading, utc_now, writing
from app.kit.ids import new_id
from app.models.service import find
from app.models.tables import Engine, EngineAdapter, Model
from app.settings import get_settings
from tests.conftest import serving

ASK = {"model": "demo-base", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(autouse=True)
def impatient(client: httpx.Client) -> Iterator[None]:
    """No engine comes here, so nobody waits long for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_settings(), "engine_wait_seconds", 0.5)
        yield
    with writing() as session:
        for engine in session.query(Engine):
            session.delete(engine)


def engine_status() -> str | None:
    """What is wanted of the demo base's engine."""
    with reading() as session:
        model = find(session, DEFAULT_PROJECT, "demo-base")
        engine = session.get(Engine, model.id) if model else None
        return engine.status if engine else None


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b'{"model": "nobody", "messages": []}', 404, "model_not_found", "model"),
        (b'{"messages": []}', 422, "invalid_value", "model"),
        (b'{"model": 7}', 422, "invalid_value", "model"),
        (b"[1, 2]", 400, "invalid_json", None),
        (b'{"model": ', 400, "invalid_json", None),
        (b"", 400, "invalid_json", None),
        (b'"\xff"', 400, "invalid_json", None),
    ],
)
def test_a_request_that_no_engine_could_answer_is_refused(
    client: httpx.Client, body: bytes, status: int, code: str, param: str | None
) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"chat_template": "{{ 1 }}"}, "chat_template"),
        ("/v1/chat/completions", {"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        ("/v1/chat/completions", {"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    ],
)
def test_what_renders_is_the_model_s(client: httpx.Client, path: str, fields: dict[str, Any], param: str) -> None:
    answer = client.post(path, json=ASK | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.fixture
def heard() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What an engine that serves everything was asked: the end of the path, and the body."""
    said: list[tuple[str, dict[str, Any]]] = []
    engine = FastAPI()

    @engine.post("/v1/{what:path}")
    async def answer(what: str, request: Request) -> dict[str, Any]:
        said.append((what, await request.json()))
        return {"model": said[-1][1]["model"], "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    with serving(engine) as url:
        with writing() as session:
            for model in session.query(Model).filter(Model.kind != "adapter"):
                now = utc_now()
                session.add(
                    Engine(model_id=model.id, status="ready", url=url, generation=1, wanted_at=now, last_used_at=now)
                )
            for model in session.query(Model).filter_by(kind="adapter"):
                session.merge(EngineAdapter(model_id=model.id, engine_id=model.base_model_id, generation=1))
        yield said


def add(kind: str, chat_template: str | None, **facts: Any) -> str:
    """A model on the demo base; its name."""
    with writing() as session:
        base = find(session, DEFAULT_PROJECT, "demo-base")
        assert base is not None
        name = new_id("tune")
        session.add(
            Model(
                id=name, name=name, project_id=DEFAULT_PROJECT, kind=kind, source="job:x", status="ready", facts=facts,
                chat_template=chat_template if chat_template != "base's" else base.chat_template, base_model_id=base.id,
            )
        )  # fmt: skip
        return name


def test_an_adapter_is_rendered_by_its_own_template_with_its_arguments(
    client: httpx.Client, request: pytest.FixtureRequest
) -> None:
    off = {"template_arguments": {"enable_thinking": False}}
    plain, own, whole = add("adapter", "base's"), add("adapter", "{{ 1 }}", **off), add("merged", "{{ 1 }}", **off)
    heard = request.getfixturevalue("heard")

    def asked(model: str, **fields: Any) -> dict[str, Any]:
        client.post("/v1/chat/completions", json=ASK | {"model": model} | fields).raise_for_status()
        found: dict[str, Any] = heard[-1][1]
        return found

    assert not {"chat_template", "chat_template_kwargs"} & asked(plain).keys()
    assert (asked(own)["chat_template"], asked(own)["chat_template_kwargs"]) == ("{{ 1 }}", {"enable_thinking": False})
    assert "chat_template" not in asked(whole)  # its engine was started with it
    own_wins = asked(whole, chat_template_kwargs={"enable_thinking": True, "tone": [1]})["chat_template_kwargs"]
    assert own_wins == {"enable_thinking": True, "tone": [1]}


def test_a_text_is_gone_on_with_also_where_there_is_no_chat_template(
    client: httpx.Client, request: pytest.FixtureRequest
) -> None:
    bare = add("adapter", None, stop_token_ids=[2])
    judge = add("reward", "{{ 1 }}")
    heard = request.getfixturevalue("heard")
    answer = client.post("/v1/completions", json={"model": bare, "prompt": "Once"})
    assert (answer.status_code, answer.json()["model"]) == (200, bare)
    path, sent = heard[-1]
    assert sent.pop("cache_salt")
    assert (path, sent) == ("completions", {"model": bare, "prompt": "Once", "stop_token_ids": [2]})
    refused = client.post("/v1/chat/completions", json=ASK | {"model": bare})
    assert (refused.status_code, "/v1/completions" in refused.json()["error"]["hint"]) == (422, True)
    refused = client.post("/v1/completions", json={"model": judge, "prompt": "Once"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "model")


def test_a_request_wants_the_engine_and_gives_up_in_time(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert engine_status() == "wanted"


def test_a_stopped_engine_is_wanted_again(client: httpx.Client) -> None:
    client.post("/v1/chat/completions", json=ASK)
    with writing() as session:
        session.query(Engine).one().status = "stopped"
    client.post("/v1/chat/completions", json=ASK)
    assert engine_status() == "wanted"


def test_an_engine_that_cannot_be_reached_is_no_answer(client: httpx.Client) -> None:
    client.post("/v1/chat/completions", json=ASK)
    with writing() as session:
        engine = session.query(Engine).one()
        engine.status, engine.url, engine.last_used_at = "ready", "http://127.0.0.1:9", utc_now()
    answer = client.post("/v1/chat/completions", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")


def part(**fields: Any) -> dict[str, Any]:
    """A request with one part of content beside a text."""
    return ASK | {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, fields]}]}


def nested(depth: int) -> Any:
    """A URL that lies so many lists deep."""
    inner: Any = {"image_url": "http://169.254.169.254/"}
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (part(type="image_url", image_url={"url": "http://169.254.169.254/latest"}), "image_url.url"),
        (part(type="image_url", image_url={"url": "HTTPS://example.org/a.png"}), "image_url.url"),
        (part(type="image_url", image_url="https://example.org/a.png"), "image_url"),
        (part(image_url="https://example.org/a.png"), "image_url"),
        (part(type="input_image", image_url="file:///etc/passwd"), "image_url"),
        (part(type="audio_url", audio_url={"url": " http://127.0.0.1/"}), "audio_url.url"),
        (part(type="video_url", video_url={"url": "//example.org/a.mp4"}), "video_url.url"),
        (part(type="tool_result", content=[{"type": "image", "source": {"url": "ftp://a/b"}}]), "content.0.source.url"),
        (part(type="image_url", uuid="another project's", image_url=None), "uuid"),
    ],
)
def test_media_by_url_are_refused(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    error = client.post("/v1/chat/completions", json=body)
    assert (error.status_code, error.json()["error"]["param"]) == (422, f"messages.0.content.1.{param}")
    assert "data:" in error.json()["error"]["hint"]
    assert engine_status() is None


def test_media_by_url_are_found_however_deep_they_lie(client: httpx.Client) -> None:
    body = ASK | {"messages": [{"role": "tool", "content": nested(400)}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 422


def test_media_that_the_request_brings_go_to_the_engine(
    client: httpx.Client, heard: list[tuple[str, dict[str, Any]]]
) -> None:
    body = part(type="image_url", image_url={"url": "data:image/png;base64,AAAA"})
    client.post("/v1/chat/completions", json=body).raise_for_status()
    assert heard[-1][1]["messages"] == body["messages"]


def test_each_project_has_a_prefix_cache_of_its_own(
    client: httpx.Client, heard: list[tuple[str, dict[str, Any]]]
) -> None:
    def sent(**fields: Any) -> str:
        client.post("/v1/chat/completions", json=ASK | fields).raise_for_status()
        return str(heard[-1][1]["cache_salt"])

    plain, other = sent(), cache_salt("proj_other", None)
    assert plain == sent() != other
    assert sent(cache_salt="mine") not in (plain, "mine", cache_salt("proj_other", "mine"))
    assert sent(cache_salt=other) != other
    assert client.post("/v1/completions", json={"model": "demo-base", "prompt": "a"}).status_code == 200
    assert heard[-1][1]["cache_salt"] == plain
    assert client.post("/v1/chat/completions", json=ASK | {"cache_salt": 7}).status_code == 422
