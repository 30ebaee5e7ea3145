"""vLLM for real: adapters act as PEFT says they do, and are back after the engine was killed."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from app.settings import get_settings
from tests.conftest import eventually
from tests.engine.conftest import START_SECONDS, Served, engine_processes, needs_vllm
from worker.engine import client, vllm

pytestmark = needs_vllm
IDS = [5, 120, 340, 77, 900, 340]
# Prints whether vLLM takes adapters on each architecture that it has code for, or that its code needs more than is installed.
ADAPTED = """
import importlib
from vllm.model_executor.models.interfaces import supports_lora
from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS as known
for name, (module, kind) in known.items():
    path = module if "." in module else f"vllm.model_executor.models.{module}"
    try:
        print("told:", name, supports_lora(getattr(importlib.import_module(path), kind)))
    except ModuleNotFoundError:
        print("told:", name, None)
"""
ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
    "required": ["color", "sure"],
    "additionalProperties": False,
}
# Takes adapters on some hardware and not on other.
DEPENDS = {"DeepseekV4ForCausalLM"}


def test_the_adapter_is_loaded_when_the_engine_is_seen_ready(served: Served) -> None:
    adapter = served.house.adapter("model_a")
    assert adapter is not None
    assert adapter.error is None
    assert adapter.generation == served.row.generation > 0


def test_scores_are_those_of_transformers_and_peft(served: Served, true_scores: Callable[..., float]) -> None:
    base, tuned = (client.score(served.url, name, IDS) for name in ("model_base", "model_a"))
    assert base == pytest.approx(true_scores(None, IDS), abs=0.08)
    assert tuned == pytest.approx(true_scores(served.adapter, IDS), abs=0.08)
    assert abs(base - tuned) > 0.3


def test_an_adapter_that_is_wanted_later_is_loaded_and_one_that_is_gone_unloaded(
    served: Served, make_adapter: Callable[[int], Path], true_scores: Callable[..., float]
) -> None:
    folder = make_adapter(2)
    served.house.add_adapter("model_b", folder, "model_base")
    eventually(lambda: served.house.adapter("model_b").generation == served.row.generation, 30, "model_b is loaded")  # type: ignore[union-attr]
    assert client.score(served.url, "model_b", IDS) == pytest.approx(true_scores(folder, IDS), abs=0.08)
    served.house.remove_model("model_b")
    eventually(lambda: "model_b" not in _names(served.url), 30, "model_b is unloaded")


def test_an_adapter_that_does_not_fit_gets_an_error_and_the_rest_goes_on(served: Served, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    served.house.add_adapter("model_bad", tmp_path, "model_base")
    error = eventually(lambda: served.house.adapter("model_bad").error, 30, "model_bad has an error")  # type: ignore[union-attr]
    assert error["code"] == "adapter_refused"
    assert "model_bad" in error["message"]
    assert client.score(served.url, "model_a", IDS) < 0
    served.house.remove_model("model_bad")


def test_the_row_s_chat_template_is_the_one_used(served: Served) -> None:
    body = {"model": "model_a", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 2}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    tokenized = httpx.post(f"{served.url}/tokenize", json={"model": "model_base", "prompt": "abc"}, timeout=60).json()
    assert answer["usage"]["prompt_tokens"] == tokenized["count"]


@pytest.mark.parametrize("model", ["model_base", "model_a"])
def test_an_answer_keeps_to_a_schema_whatever_the_weights(served: Served, model: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER, "strict": True}}
    message = _chat(served, model, response_format=wanted, cache_salt="0f" * 32)
    answer = json.loads(message["content"])
    assert answer["color"] in ("red", "green")
    assert set(answer) == {"color", "sure"}
    assert isinstance(answer["sure"], bool)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_a_tool_is_called_with_arguments_that_fit(served: Served, choice: Any) -> None:
    paint = {"name": "paint", "description": "Paints.", "parameters": ANSWER, "strict": True}
    tool = {"type": "function", "function": paint}
    message = _chat(served, "model_a", tools=[tool], tool_choice=choice)
    assert message.get("tool_calls"), message
    call = message["tool_calls"][0]["function"]
    assert call["name"] == "paint"
    assert json.loads(call["arguments"])["color"] in ("red", "green")


def test_the_row_says_what_the_engine_can_do(served: Served) -> None:
    assert served.row.features == {"engine": "vllm", "tools": "hermes", "reasoning": None, "response_format": True}


def _chat(served: Served, model: str, **fields: Any) -> dict[str, Any]:
    """The message that answers a question. Between the parts of JSON white space is allowed without end, and random weights
    write it without end, so none is."""
    body = {"model": model, "messages": [{"role": "user", "content": "abc"}], "max_tokens": 300, "seed": 1} | fields
    tokenizer = Tokenizer.from_file(str(served.house.base / "tokenizer.json"))
    texts = (tokenizer.decode([id]) for id in range(tokenizer.get_vocab_size()))
    body["logit_bias"] = {str(id): -100 for id, text in enumerate(texts) if any(map(str.isspace, text))}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    message: dict[str, Any] = answer.json()["choices"][0]["message"]
    return message


@pytest.mark.rare  # a start takes vLLM the better part of a minute; tests/system/test_deaths.py kills one, too
def test_a_killed_engine_comes_back_with_its_adapter(served: Served, true_scores: Callable[..., float]) -> None:
    before = served.row.generation
    workers = engine_processes(served.controller, "EngineCore")
    server = engine_processes(served.controller, "vllm.entrypoints.openai.api_server")[0]
    server.kill()
    eventually(
        lambda: not any(process.is_running() for process in workers), 20, "nothing of the killed engine is alive"
    )
    row = served.house.ready("model_base", START_SECONDS, above=before)
    adapter = served.house.adapter("model_a")
    assert adapter is not None
    assert adapter.generation == row.generation
    assert client.score(str(row.url), "model_a", IDS) == pytest.approx(true_scores(served.adapter, IDS), abs=0.08)


def _names(url: str) -> set[str]:
    return {each["id"] for each in httpx.get(f"{url}/v1/models", timeout=30).json()["data"]}


@pytest.mark.rare  # imports all of vLLM's models, and changes only with vLLM's version
def test_it_takes_adapters_on_what_is_not_named_as_without() -> None:
    command = [str(get_settings().vllm_python), "-c", ADAPTED]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    told = dict(line.split()[1:] for line in said.splitlines() if line.startswith("told: "))
    without = {name for name, adapted in told.items() if adapted == "False"} - DEPENDS
    unknown = {name for name, adapted in told.items() if adapted == "None"}
    assert len(told) > 100
    assert without == vllm.WITHOUT_ADAPTERS - unknown
    assert told["Qwen2ForCausalLM"] == told["Glm4ForCausalLM"] == "True"


def test_requests_for_the_base_keep_to_its_weights_while_adapters_fill_every_slot(
    served: Served, make_adapter: Callable[[int], Path]
) -> None:
    alone = client.score(served.url, "model_base", IDS)
    names = [f"model_slot_{number}" for number in range(vllm.ADAPTER_SLOTS)]
    for number, name in enumerate(names):
        served.house.add_adapter(name, make_adapter(10 + number), "model_base")
    eventually(lambda: set(names) <= _names(served.url), 60, "every adapter is loaded")
    stop = threading.Event()

    def generate(name: str) -> int:
        """Keep one request of the adapter in the batch. Returns how many were answered."""
        answered = 0
        while not stop.is_set():
            body = {"model": name, "prompt": IDS, "max_tokens": 64, "ignore_eos": True}
            httpx.post(f"{served.url}/v1/completions", json=body, timeout=120).raise_for_status()
            answered += 1
        return answered

    with ThreadPoolExecutor(len(names)) as threads:
        generating = [threads.submit(generate, name) for name in names]
        try:
            eventually(lambda: _running(served.url) >= len(names), 60, "a batch of every adapter")
            beside = [client.score(served.url, "model_base", IDS) for _ in range(20)]
        finally:
            stop.set()
    assert all(answers.result() for answers in generating)
    assert beside == pytest.approx([alone] * 20, abs=0.02)


def _running(url: str) -> float:
    """The number of requests in vLLM's batch."""
    metrics = httpx.get(f"{url}/metrics", timeout=30).text
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("vllm:num_requests_running"))


def test_the_operator_s_list_of_plugins_keeps_the_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "their_own")
    assert vllm.environment(get_settings())["VLLM_PLUGINS"] == "their_own,burnish"
