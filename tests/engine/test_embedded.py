"""The embedded engine's server, as a real process: the part of vLLM's surface that the service uses."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from app.kit import processes
from app.settings import Settings
from tests.conftest import eventually
from worker.engine import client, embedded
from worker.engine.protocol import EngineError, Launch

IDS = [5, 120, 340, 77, 900, 340]
LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 150, "temperature": 1.5}
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def url(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of `model_base`, with a chat template that adds nothing, so that the base goes on and on."""
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "plain.jinja").write_text(TEMPLATE)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = Settings(max_model_len=512)
    launch = Launch("model_base", base, port, folder / "plain.jinja")
    with (folder / "log").open("wb") as log:
        process = processes.spawn(
            embedded.command(launch, settings), env=embedded.environment(settings), stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}"
        eventually(lambda: client.is_healthy(address) or process.poll() is not None, 120, "the engine is healthy")
        assert process.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        assert processes.stop(process, 10) in (0, 143)


@pytest.fixture(scope="module")
def adapters(url: str, make_adapter: Callable[[int], Path]) -> dict[str, Path]:
    """Two adapters, loaded."""
    folders = {"model_a": make_adapter(1), "model_b": make_adapter(2)}
    for name, folder in folders.items():
        client.load_adapter(url, name, folder)
    return folders


def _chat(url: str, **fields: Any) -> httpx.Response:
    body = {
        "model": "model_base",
        "messages": [{"role": "user", "content": "The kettle is"}],
        "temperature": 0,
    } | fields
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def _text(response: httpx.Response) -> str:
    return str(response.raise_for_status().json()["choices"][0]["message"]["content"])


def _streamed(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.raise_for_status().text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_each_request_gets_the_adapter_that_it_names(
    url: str, adapters: dict[str, Path], true_scores: Callable[..., float]
) -> None:
    scores = {name: client.score(url, name, IDS) for name in ("model_a", "model_base", "model_b", "model_base")}
    assert scores["model_base"] == pytest.approx(true_scores(None, IDS), abs=0.1)
    for name, folder in adapters.items():
        assert scores[name] == pytest.approx(true_scores(folder, IDS), abs=0.1)
    assert abs(scores["model_a"] - scores["model_base"]) > 0.3
    assert len({_text(_chat(url, model=name, max_tokens=16)) for name in scores}) == 3


def test_adapters_can_be_listed_and_unloaded_and_loaded_twice(url: str, adapters: dict[str, Path]) -> None:
    client.load_adapter(url, "model_c", adapters["model_a"])
    client.load_adapter(url, "model_c", adapters["model_a"])
    assert "model_c" in {each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]}
    client.unload_adapter(url, "model_c")
    client.unload_adapter(url, "model_c")
    assert _chat(url, model="model_c").json()["error"]["code"] == "model_not_found"
    assert client.score(url, "model_a", IDS) < 0


def test_a_folder_that_is_no_adapter_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        client.load_adapter(url, "model_bad", tmp_path)
    assert caught.value.code == "adapter_refused"


def test_greedy_answers_repeat_and_count_their_tokens(url: str) -> None:
    first, second = (_chat(url, max_tokens=12).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    usage = first["usage"]
    assert usage["completion_tokens"] <= 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_what_the_gateway_sets_for_vllm_changes_nothing(url: str) -> None:
    assert _text(_chat(url, max_tokens=5, cache_salt="0f" * 32)) == _text(_chat(url, max_tokens=5))


def test_a_seed_repeats_a_sampled_answer(url: str) -> None:
    hot = {"temperature": 1.5, "max_tokens": 24}
    one, again, other = (_text(_chat(url, seed=seed, **hot)) for seed in (7, 7, 8))
    assert one == again
    assert one != other


def test_an_answer_ends_at_its_limit_or_at_a_stop_string(url: str) -> None:
    whole = _chat(url, max_completion_tokens=6).json()["choices"][0]
    assert whole["finish_reason"] == "length"
    text = whole["message"]["content"]
    stop = text[len(text) // 2 :][:3]
    cut = _chat(url, max_tokens=6, stop=["never to be seen", stop]).json()["choices"][0]
    assert cut["finish_reason"] == "stop"
    assert cut["message"]["content"] == text[: text.index(stop)]


def test_a_stream_says_what_the_whole_answer_says(url: str) -> None:
    text = _text(_chat(url, max_tokens=24))
    stop = text[len(text) // 2 :][:3]
    for fields in ({}, {"stop": stop}):
        whole = _chat(url, max_tokens=24, **fields).json()
        events = _streamed(_chat(url, max_tokens=24, stream=True, stream_options={"include_usage": True}, **fields))
        pieces = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
        assert "".join(pieces) == whole["choices"][0]["message"]["content"]
        assert len([piece for piece in pieces if piece]) > 3
        assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert events[-1]["usage"] == whole["usage"]


def test_mixture_of_depths_is_loaded_with_its_routers(base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from worker.engine.embedded_model import EmbeddedModel, Sampling
    from worker.trainer.depths import add_routers

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    folder = Path(shutil.copytree(base, tmp_path / "routed"))
    add_routers(model, 0.5)
    model.eval().save_pretrained(folder)
    served = EmbeddedModel(folder, None, 512)
    with torch.inference_mode():
        logits = model.to(served.device)(input_ids=torch.tensor([IDS], device=served.device), use_cache=False).logits
        plain = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([IDS])).logits
    whole = [float(row[id]) for row, id in zip(logits[0].log_softmax(-1), IDS[1:], strict=False)]
    assert served.log_probabilities(None, IDS) == pytest.approx(whole, abs=1e-3)
    assert not torch.allclose(plain, logits.cpu(), atol=0.1)
    written: list[int] = []
    served.generate(None, IDS, Sampling(max_tokens=8, temperature=0), written.append, threading.Event())
    ids = list(IDS)
    for token in written:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=served.device), use_cache=False).logits
        assert token == int(logits[0, -1].argmax())
        ids.append(token)
    assert written


def _complete(url: str, **fields: Any) -> httpx.Response:
    body = {"model": "model_base", "prompt": "The kettle is", "temperature": 0} | fields
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def test_a_text_is_gone_on_with_as_it_is(url: str) -> None:
    whole = _complete(url, max_tokens=12).raise_for_status().json()
    assert (whole["object"], whole["choices"][0]["finish_reason"]) == ("text_completion", "length")
    # The server's template writes a message's content and a space.
    assert whole["choices"][0]["text"] == _text(_chat(url, messages=[{"role": "user", "content": "The kettle is"}], max_tokens=12,
                                                      chat_template="{{ messages[0].content }}"))  # fmt: skip
    events = _streamed(_complete(url, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"]) == whole["choices"][0]["text"]
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"] == whole["usage"]
    assert {event["object"] for event in events} == {"text_completion"}
    sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = sdk.completions.create(model="model_base", prompt="The kettle is", max_tokens=12, temperature=0)
    assert answer.choices[0].text == whole["choices"][0]["text"]


def test_sixteen_tokens_follow_a_text_unless_more_are_asked_for(url: str) -> None:
    assert _complete(url, temperature=1.5, seed=3).json()["usage"]["completion_tokens"] <= 16


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [5, 10**6]}, "prompt"),
        ({"prompt": "long " * 2000}, "prompt"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"messages": []}, "messages"),
        ({"echo": True}, "echo"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(url: str, fields: dict[str, Any], param: str) -> None:
    response = _complete(url, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_request_brings_an_adapter_s_template_and_arguments(url: str) -> None:
    template = "{{ messages[0].content }}{% if louder %} LOUD{% endif %}"

    def tokens(**fields: Any) -> int:
        return int(_chat(url, max_tokens=1, **fields).raise_for_status().json()["usage"]["prompt_tokens"])

    plain = tokens(chat_template=template)
    assert plain == tokens(chat_template=template, chat_template_kwargs={"louder": False})
    assert tokens(chat_template=template, chat_template_kwargs={"louder": True}) > plain
    assert _chat(url, chat_template="{% if %}").status_code == 400
    assert _chat(url, chat_template_kwargs=[]).status_code == 400


def _hang_up(url: str, stream: bool, seed: int) -> None:
    """Ask for a long answer, and be gone at its first line, or, where it has no lines, at once."""
    body = LONG | {"model": "model_base", "seed": seed, "stream": stream}
    timeout = httpx.Timeout(30, read=30 if stream else 0.05)
    with suppress(httpx.ReadTimeout):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=timeout) as response:
            next(response.iter_lines())


@pytest.mark.parametrize("stream", [False, True])
def test_generation_ends_when_the_client_hangs_up(url: str, stream: bool) -> None:
    def seconds_of(**fields: Any) -> float:
        started = time.monotonic()
        _chat(url, **LONG | fields).raise_for_status()
        return time.monotonic() - started

    whole, seed = max((seconds_of(seed=seed), seed) for seed in range(3))
    queued = 6
    for _ in range(queued):
        _hang_up(url, stream, seed)
    # One at a time is generated: what was hung up on would keep this request waiting.
    assert seconds_of(max_tokens=1) < whole * queued / 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, "messages"),
    ],
)
def test_what_is_not_served_is_refused_with_the_field_named(url: str, fields: dict[str, Any], param: str) -> None:
    response = _chat(url, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_openai_s_sdk_is_served(url: str) -> None:
    sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "The "}, {"type": "text", "text": "kettle is"}]}
    ]
    answer = sdk.chat.completions.create(model="model_base", messages=messages, max_tokens=8, temperature=0, n=1)
    assert answer.choices[0].message.content == _text(_chat(url, max_tokens=8))
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="nobody", messages=messages)
