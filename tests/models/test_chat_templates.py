"""Chat templates by name, and what templates are handed: at POST /models, and written into jobs."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.kit.database import reading
from app.models.chat_templates import END_TOKENS, text_of
from app.models.inspection import inspect_model
from app.models.tables import Model
from tests.datasets.helpers import refusal
from tests.models.own import config, folder

__all__ = ["folder"]

OFF = {"enable_thinking": False}


def register(client: httpx.Client, source: object, **fields: object) -> httpx.Response:
    return client.post("/models", json={"name": f"m-{secrets.token_hex(4)}", "source": str(source)} | fields)


@pytest.fixture
def bare(folder: Path) -> Path:
    """The demo base without its chat template."""
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def rows(client: httpx.Client) -> str:
    return str(client.post("/datasets", content=b'{"instruction": "a", "output": "b"}').json()["id"])


def row_of(model: dict[str, Any]) -> Model:
    with reading() as session:
        return session.get_one(Model, model["id"])


def test_a_name_stands_for_a_template_whose_end_the_model_has(client: httpx.Client, bare: Path) -> None:
    named = register(client, bare, chat_template="chatml").raise_for_status().json()
    assert named["has_chat_template"] is True
    row = row_of(named)
    assert row.chat_template == text_of("chatml")
    assert row.facts["stop_token_ids"] == [2]  # <|im_end|>, which a base model does not stop at by itself


@pytest.mark.parametrize(
    ("name", "words"),
    [("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>"), ("glm4", "<|user|>"), ("phi3", "<|end|>"), ("mistral", "</s>")],
)  # fmt: skip
def test_a_name_whose_end_the_model_has_not_is_refused(client: httpx.Client, bare: Path, name: str, words: str) -> None:
    error = refusal(register(client, bare, chat_template=name), 422, "invalid_value")
    assert error["param"] == "chat_template"
    assert words in error["message"]
    assert "chatml, phi4, plain, qwen3" in error["hint"]


def test_an_end_beyond_the_model_s_vocabulary_is_none(client: httpx.Client, bare: Path) -> None:
    tokenizer = json.loads((bare / "tokenizer.json").read_text())
    token = tokenizer["added_tokens"][-1]
    tokenizer["added_tokens"] += [token | {"id": 5119, "content": "<|end|>"}, token | {"id": 5120, "content": "</s>"}]
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert set(inspect_model(bare)[0]["templates"]) == {"chatml", "phi3", "phi4", "plain", "qwen3"}
    refusal(register(client, bare, chat_template="llama2"), 422, "invalid_value")


def test_where_the_tokens_cannot_be_read_training_is_left_to_judge(client: httpx.Client, bare: Path) -> None:
    (bare / "tokenizer.json").rename(bare / "tokenizer.model")
    assert "templates" not in inspect_model(bare)[0]
    assert register(client, bare, chat_template="llama3").status_code == 201


def test_a_name_that_there_is_not_is_answered_with_those_that_there_are(client: httpx.Client, bare: Path) -> None:
    error = refusal(register(client, bare, chat_template="vicuna"), 422, "invalid_value")
    assert (error["param"], "'vicuna'" in error["message"]) == ("chat_template", True)
    assert all(name in error["hint"] for name in END_TOKENS)


@pytest.mark.parametrize(
    "arguments",
    [{"messages": 1}, {"bos_token": "x"}, {"add_generation_prompt": True}, {"a b": 1}, {"a": [1]}, {"a": {}}, {"a": 2**60}, [1]],
)  # fmt: skip
def test_an_argument_that_is_none_is_refused(client: httpx.Client, bare: Path, rows: str, arguments: Any) -> None:
    error = refusal(register(client, bare, template_arguments=arguments), 422, "invalid_value")
    assert error["param"].startswith("template_arguments")
    job = {"base_model": "demo-base", "dataset": rows, "template_arguments": arguments}
    assert refusal(client.post("/jobs", json=job), 422, "invalid_value")["param"].startswith("template_arguments")


def test_a_job_has_its_base_s_template_and_arguments_or_its_own(client: httpx.Client, bare: Path, rows: str) -> None:
    base = register(client, bare, chat_template="qwen3", template_arguments=OFF).raise_for_status().json()
    assert base["template_arguments"] == OFF
    body = {"base_model": base["name"], "dataset": rows}
    job = client.post("/jobs", json=body).raise_for_status().json()
    assert (job["chat_template"], job["template_arguments"]) == (None, OFF)
    own = {"chat_template": "chatml", "template_arguments": {}}
    job = client.post("/jobs", json=body | own).raise_for_status().json()
    assert (job["chat_template"], job["template_arguments"]) == (text_of("chatml"), {})


def test_a_model_without_a_template_is_trained_with_the_job_s(client: httpx.Client, bare: Path, rows: str) -> None:
    base = register(client, bare).raise_for_status().json()
    body = {"base_model": base["name"], "dataset": rows}
    error = refusal(client.post("/jobs", json=body), 422, "invalid_value")
    assert "chat_template" in error["hint"]
    error = refusal(client.post("/jobs", json=body | {"chat_template": "llama3"}), 422, "invalid_value")
    assert (error["param"], "<|eot_id|>" in error["message"]) == ("chat_template", True)
    assert client.post("/jobs", json=body | {"chat_template": "plain"}).status_code == 202


@pytest.mark.parametrize("field", [{"chat_template": "chatml"}, {"template_arguments": OFF}])
def test_pretraining_learns_nothing_of_a_template(client: httpx.Client, field: dict[str, Any]) -> None:
    texts = client.post("/datasets", params={"format": "text"}, content=b'{"text": "a"}').raise_for_status().json()
    body = {"base_model": "demo-base", "dataset": texts["id"], "stage": "pt"}
    assert refusal(client.post("/jobs", json=body | field), 422, "invalid_value")["param"] == next(iter(field))


def test_a_tokenizer_s_own_configuration_names_special_tokens_too(bare: Path) -> None:
    tokenizer = json.loads((bare / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert set(inspect_model(bare)[0]["templates"]) == {"chatml", "phi4", "plain", "qwen3"}  # it is the eos_token
    config(bare, vocab_size=None)
    assert "chatml" in inspect_model(bare)[0]["templates"]
