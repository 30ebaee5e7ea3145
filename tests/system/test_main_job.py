"""The road of the main job on real parts: upload, train, watch, chat; and that the fine-tune's weights are what answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from app.kit import storage
from app.kit.database import reading
from app.models.chat_templates import text_of
from app.models.tables import Engine
from demo.service import ask, ask_all, user_turn
from demo.text import sample_rows
from tests.conftest import eventually
from tests.system.service import Service

QUESTIONS = 40


@pytest.fixture(scope="module")
def tuned(running: Service, dataset: str) -> dict[str, Any]:
    """A job at the defaults that succeeded."""
    return running.ended(running.create(dataset, validation={"fraction": 0.1}, check={"scorecard": True}))


@pytest.fixture(scope="module")
def questions() -> list[tuple[str, str]]:
    """Held-out questions and their answers."""
    rows = sample_rows(QUESTIONS, seed=2, split="heldout")
    return [(user_turn(row), row["output"]) for row in rows]


@pytest.fixture(scope="module")
def answers(running: Service, tuned: dict[str, Any], questions: list[tuple[str, str]]) -> list[str]:
    """What the fine-tune says to the questions."""
    return ask_all(running.client, tuned["model"]["name"], [question for question, _ in questions])


def accuracy(answers: list[str], questions: list[tuple[str, str]]) -> float:
    return sum(given == right for given, (_, right) in zip(answers, questions, strict=True)) / len(questions)


def test_a_job_at_the_defaults_succeeds_and_tells_how_it_went(running: Service, tuned: dict[str, Any]) -> None:
    assert tuned["status"] == "succeeded", tuned["error"]
    assert tuned["progress"]["step"] == tuned["progress"]["total_steps"] == 108
    metrics = running.client.get(f"/jobs/{tuned['id']}/metrics").json()["data"]
    assert [row["step"] for row in metrics] == list(range(1, 109))
    assert metrics[-1]["loss"] < metrics[0]["loss"] / 4
    assert sum(row["validation_loss"] is not None for row in metrics) == 3
    events = running.client.get(f"/jobs/{tuned['id']}/events", params={"limit": 1000}).json()["data"]
    assert (events[0]["type"], events[-1]["type"]) == ("created", "succeeded")
    assert "its own weights" in events[-1]["message"]
    base, fine_tune = tuned["scorecard"]["base"], tuned["scorecard"]["tuned"]
    assert fine_tune["loss"] < base["loss"] / 4
    assert base["accuracy"] < 0.1 < 0.25 < fine_tune["accuracy"]
    assert fine_tune["stop_rate"] > 0.9


def test_the_fine_tune_answers_what_the_base_cannot(
    running: Service, answers: list[str], questions: list[tuple[str, str]]
) -> None:
    some = questions[:10]  # the base's answers have no end
    assert accuracy(ask_all(running.client, "demo-base", [question for question, _ in some]), some) == 0
    assert accuracy(answers, questions) >= 0.25


def test_merged_weights_answer_as_the_adapter_does(
    running: Service, dataset: str, tuned: dict[str, Any], answers: list[str], questions: list[tuple[str, str]]
) -> None:
    one_step = {"max_steps": 1, "learning_rate": 1e-9}  # the adapter, as good as untouched
    job = running.create(
        dataset, base_model=tuned["model"]["name"], hyperparameters=one_step, deploy={"mode": "merged"}
    )
    job = running.ended(job)
    assert job["status"] == "succeeded", job["error"]
    assert running.client.get(f"/models/{job['model']['name']}").json()["kind"] == "merged"
    merged = ask_all(running.client, job["model"]["name"], [question for question, _ in questions])
    assert sum(map(str.__eq__, merged, answers)) >= 0.9 * QUESTIONS, list(zip(merged, answers, strict=True))


def test_a_checkpoint_of_a_finished_job_answers_and_is_trained_on(
    running: Service, dataset: str, tuned: dict[str, Any], questions: list[tuple[str, str]]
) -> None:
    newest = running.client.get(f"/jobs/{tuned['id']}/checkpoints").json()["data"][0]
    body = {"name": "last-step", "source": f"checkpoint://{newest['id']}"}
    running.client.post("/models", json=body).raise_for_status()
    asked = [question for question, _ in questions[:10]]
    answers = [ask_all(running.client, name, asked) for name in ("last-step", tuned["model"]["name"])]
    assert answers[0] == answers[1]  # the last step's weights are the fine-tune's
    further = running.ended(running.create(dataset, base_model="last-step", hyperparameters={"max_steps": 5}))
    assert further["status"] == "succeeded", further["error"]
    first = running.client.get(f"/jobs/{further['id']}/metrics").json()["data"][0]["loss"]
    last = running.client.get(f"/jobs/{tuned['id']}/metrics").json()["data"][-1]["loss"]
    assert first < 2 * last + 0.1
    assert running.client.get(f"/models/{further['model']['name']}").json()["base_model"] == "demo-base"
    manifest = json.loads((storage.fetch_folder(f"artifacts/{further['id']}/1") / "manifest.json").read_text())
    assert manifest["provenance"]["fine_tune"]["name"] == "last-step"


def test_an_adapter_is_asked_by_the_template_that_it_was_trained_with(running: Service, dataset: str) -> None:
    own = {"chat_template": text_of("qwen3"), "template_arguments": {"enable_thinking": False}}
    job = running.ended(running.create(dataset, hyperparameters={"max_steps": 5}, **own))
    assert (job["status"], job["deploy"]["mode"]) == ("succeeded", "adapter"), job["error"]
    name = job["model"]["name"]
    prompts = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    asked = (
        running.client.post("/datasets", params={"kind": "prompts"}, content=prompts).raise_for_status().json()["id"]
    )

    def rendered(base: str) -> int:
        body = {"base_model": base}
        [sequence] = running.client.post(f"/datasets/{asked}/preview", json=body).raise_for_status().json()["sequences"]
        return len(sequence["token_ids"])

    def read(model: str, **fields: Any) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1} | fields
        answer = running.client.post("/v1/chat/completions", json=body).raise_for_status().json()
        return int(answer["usage"]["prompt_tokens"])

    assert read(name) == rendered(name) > rendered("demo-base") == read("demo-base")
    # As this template has it, a prompt that leaves thinking to the model is that of ChatML.
    assert read(name, chat_template_kwargs={"enable_thinking": True}) == read("demo-base")


def test_a_text_is_gone_on_with(running: Service, tuned: dict[str, Any]) -> None:
    name = tuned["model"]["name"]
    sdk = openai.OpenAI(base_url=str(running.client.base_url.join("/v1")), api_key="any")
    ask: Any = {"model": name, "prompt": "The kettle", "max_tokens": 12, "temperature": 0}
    before = used(running, name)
    whole = sdk.completions.create(**ask)
    assert (whole.model, whole.object) == (name, "text_completion")
    assert (
        "".join(chunk.choices[0].text for chunk in sdk.completions.create(**ask, stream=True)) == whole.choices[0].text
    )
    assert whole.usage
    counts = (1, whole.usage.prompt_tokens, whole.usage.completion_tokens)
    expected = tuple(old + 2 * new for old, new in zip(before, counts, strict=True))
    eventually(lambda: used(running, name) == expected, 5, f"usage of {expected}")


def test_the_openai_sdk_chats_with_it_streaming_and_not(
    running: Service, tuned: dict[str, Any], questions: list[tuple[str, str]]
) -> None:
    name, (question, _) = tuned["model"]["name"], questions[0]
    sdk = openai.OpenAI(base_url=str(running.client.base_url.join("/v1")), api_key="any")
    assert name in [model.id for model in sdk.models.list()]
    messages: Any = [{"role": "user", "content": question}]
    whole = sdk.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=48)
    assert (whole.model, whole.choices[0].finish_reason) == (name, "stop")
    chunks = list(sdk.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=48, stream=True))
    assert {chunk.model for chunk in chunks} == {name}
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == whole.choices[0].message.content
    )
    with pytest.raises(openai.NotFoundError) as refused:
        sdk.chat.completions.create(model="nobody", messages=messages)
    assert refused.value.code == "model_not_found"


def used(service: Service, model: str) -> tuple[int, int, int]:
    """Requests, input and output tokens of the model that are written down."""
    rows = service.client.get("/usage", params={"model": model}).raise_for_status().json()["data"]
    requests, read, written = (sum(row[name] for row in rows) for name in ("requests", "input_tokens", "output_tokens"))
    return requests, read, written


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_are_counted_as_the_engine_counts_them(running: Service, tuned: dict[str, Any], stream: bool) -> None:
    name = tuned["model"]["name"]
    sdk = openai.OpenAI(base_url=str(running.client.base_url.join("/v1")), api_key="any")
    ask: Any = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9, "temperature": 0}
    before = used(running, name)
    if stream:
        chunks = list(sdk.chat.completions.create(**ask, stream=True))
        assert all(chunk.choices for chunk in chunks)  # a client that asked for no usage is told none
        assert not any(chunk.usage for chunk in chunks)
        *pieces, last = sdk.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        assert not any(chunk.usage for chunk in pieces)
        told = [last.usage, last.usage]
    else:
        told = [sdk.chat.completions.create(**ask).usage]
    assert all(0 < usage.completion_tokens <= 9 for usage in told)
    counts = (len(told), sum(each.prompt_tokens for each in told), sum(each.completion_tokens for each in told))
    expected = tuple(map(sum, zip(before, counts, strict=True)))
    eventually(lambda: used(running, name) == expected, 5, f"usage of {expected}")


def test_what_was_answered_is_counted_when_the_client_hangs_up(running: Service, tuned: dict[str, Any]) -> None:
    name = tuned["model"]["name"]
    body = {"model": name, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1500, "stream": True}
    if endless := bool(engine_metrics()):  # the embedded engine cannot be told to go on beyond an answer's end
        body["ignore_eos"] = True
    before = used(running, name)
    with running.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        for _ in range(12 if endless else 2):  # the first has the role and no token
            next(lines)
    eventually(lambda: used(running, name)[0] == before[0] + 1, 10, "the usage of a stream that was left")
    written = used(running, name)[2] - before[2]
    assert written > 0
    assert not endless or written < 1500


def test_a_job_s_tokens_are_counted(running: Service, tuned: dict[str, Any]) -> None:
    metrics = running.client.get(f"/jobs/{tuned['id']}/metrics").json()["data"]
    rows = running.client.get("/usage", params={"model": tuned["name"]}).json()["data"]
    assert sum(row["trained_tokens"] for row in rows) == sum(metric["tokens"] for metric in metrics)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_the_generation(running: Service, tuned: dict[str, Any], stream: bool) -> None:
    """An engine that went on would answer the next question only after thousands of tokens."""
    if not engine_metrics():
        pytest.skip("the embedded engine publishes no metrics; tests/engine/test_embedded.py shows the same of it")
    name = tuned["model"]["name"]
    ask(running.client, name, "warm")
    # Without an end token the model writes until its context is full, which takes far longer than this client waits.
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 1900,
        "ignore_eos": True,
        "stream": stream,
    }
    if stream:
        with running.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()  # kept: an iterator that is dropped closes the connection
            next(lines)
            eventually(lambda: requests_running() == 1, 5, "the generation's own count")
    else:
        with pytest.raises(httpx.ReadTimeout):
            running.client.post("/v1/chat/completions", json=body, timeout=1.0)
    eventually(lambda: requests_running() == 0, 5, "the end of the generation")


def engine_metrics() -> list[str]:
    """What the engines say of themselves, in Prometheus's format."""
    with reading() as session:
        urls = [engine.url for engine in session.query(Engine) if engine.status == "ready"]
    answers = [httpx.get(f"{url}/metrics") for url in urls]
    return [line for answer in answers if answer.is_success for line in answer.text.splitlines()]


def requests_running() -> float:
    return sum(float(line.split()[-1]) for line in engine_metrics() if line.startswith("vllm:num_requests_running"))


def test_what_a_fine_tune_carries_reproduces_it(running: Service, tuned: dict[str, Any]) -> None:
    folder = storage.fetch_folder(f"artifacts/{tuned['id']}/1")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["spec"]["hyperparameters"]["learning_rate"] == tuned["hyperparameters"]["learning_rate"]
    assert manifest["provenance"]["dataset"]["id"] == tuned["dataset"]
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "adapter" / "chat_template.jinja").exists()
