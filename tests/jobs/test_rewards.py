"""Jobs of stage `rl`: what answers are rewarded for is said in full, and judged when the job is posted."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.jobs import reward_models
from app.jobs.spec import JobSpec
from app.kit import storage
from app.kit.database import reading, writing
from app.kit.ids import new_id
from app.models.tables import Model

PROMPTS = b"\n".join(json.dumps({"prompt": f"What is {n} + 1?", "reference": str(n + 1)}).encode() for n in range(20))


@pytest.fixture
def prompts(client: httpx.Client) -> str:
    """Id of a dataset of prompts."""
    answer = client.post("/datasets", params={"kind": "prompts"}, content=PROMPTS)
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


@pytest.fixture
def judge(client: httpx.Client) -> Model:
    """A reward model, as far as the service reads it."""
    base = client.get("/models/demo-base").json()["id"]
    with writing() as session:
        project = session.get_one(Model, base).project_id
        model = Model(
            id=new_id("model"), project_id=project, name=f"judge-{secrets.token_hex(3)}", kind="reward", status="ready",
            source="job:job_1", location=f"artifacts/{secrets.token_hex(6)}/merged", base_model_id=base, chat_template="judged so",
            facts={},
        )  # fmt: skip
        session.add(model)
    with storage.incoming() as folder:
        (folder / "out").mkdir()
        (folder / "out/model.safetensors").write_bytes(b"weights")
        storage.put_folder(folder / "out", str(model.location))
    return model


def post(client: httpx.Client, prompts: str, **hyperparameters: Any) -> httpx.Response:
    body = {"base_model": "demo-base", "dataset": prompts, "stage": "rl", "hyperparameters": hyperparameters}
    return client.post("/jobs", json=body)


def accepted(client: httpx.Client, prompts: str, **hyperparameters: Any) -> dict[str, Any]:
    answer = post(client, prompts, **hyperparameters)
    assert answer.status_code == 202, answer.text
    written: dict[str, Any] = answer.json()["hyperparameters"]
    return written


def test_what_is_left_out_is_written_out(client: httpx.Client, prompts: str) -> None:
    written = accepted(client, prompts)
    assert written["reward"] == [{"type": "exact_match", "weight": 1}]
    names = ("algorithm", "group_size", "max_new_tokens", "temperature", "beta", "learning_rate")
    assert [written[name] for name in names] == ["grpo", 8, 256, 1, 0, 0.000249]


def test_rewards_may_be_said_shortly(client: httpx.Client, prompts: str, judge: Model) -> None:
    written = accepted(
        client, prompts, reward=["number_match", {"type": "length", "max": 9, "weight": 0.5}, judge.name]
    )
    assert written["reward"] == [
        {"type": "number_match", "weight": 1},
        {"type": "length", "min": 1, "max": 9, "weight": 0.5},
        {"type": "model", "model": judge.id, "weight": 1},
    ]
    assert accepted(client, prompts, reward={"type": "regex", "pattern": "[0-9]"})["reward"][0]["pattern"] == "[0-9]"


@pytest.mark.parametrize(
    ("asked", "group_size", "max_new_tokens"),
    [
        ({"batch_size": 12}, 6, 256),
        ({"batch_size": 2}, 2, 256),
        ({"batch_size": 64, "group_size": 5}, 4, 256),
        ({"max_length": 100}, 8, 50),
        ({"max_length": 100, "max_new_tokens": 70}, 8, 70),
    ],
)
def test_groups_fit_the_batch_and_answers_the_length(
    client: httpx.Client, prompts: str, asked: dict[str, Any], group_size: int, max_new_tokens: int
) -> None:
    written = accepted(client, prompts, **asked)
    assert (written["group_size"], written["max_new_tokens"]) == (group_size, max_new_tokens)


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ({"batch_size": 1}, "invalid_value", "hyperparameters.batch_size"),
        ({"batch_size": 7, "group_size": 6}, "invalid_value", "hyperparameters.batch_size"),
        ({"max_length": 100, "max_new_tokens": 100}, "invalid_value", "hyperparameters.max_new_tokens"),
        ({"reward": []}, "invalid_value", "hyperparameters.reward"),
        ({"reward": 3}, "invalid_value", "hyperparameters.reward.0.type"),
        ({"reward": {"type": "beauty"}}, "invalid_value", "hyperparameters.reward.0.type"),
        ({"reward": "regex"}, "missing_field", "hyperparameters.reward.0.pattern"),
        ({"reward": {"type": "regex", "pattern": "("}}, "invalid_value", "hyperparameters.reward.0.pattern"),
        ({"reward": {"type": "length", "min": 5, "max": 4}}, "invalid_value", "hyperparameters.reward.0"),
        ({"reward": {"type": "exact_match", "pattern": "a"}}, "unknown_field", "hyperparameters.reward.0.pattern"),
        ({"reward": ["json_valid", "nobody"]}, "model_not_found", "hyperparameters.reward.1.model"),
        ({"reward": "demo-base"}, "invalid_value", "hyperparameters.reward.0.model"),
    ],
)
def test_what_cannot_work_is_refused(
    client: httpx.Client, prompts: str, wrong: dict[str, Any], code: str, param: str
) -> None:
    answer = post(client, prompts, **wrong)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, code, param), error


def test_a_reward_that_compares_needs_references(client: httpx.Client, prompts: str) -> None:
    lacking = PROMPTS + b'\n{"prompt": "Why?"}\n{"prompt": "How?"}'
    dataset = client.post("/datasets", params={"kind": "prompts"}, content=lacking).raise_for_status().json()
    assert dataset["statistics"]["references"] == 20
    error = post(client, dataset["id"]).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "hyperparameters.reward")
    assert "'exact_match'" in error["message"]
    assert "2 of the 22 rows" in error["message"]
    accepted(client, dataset["id"], reward="json_valid")


def test_a_reward_model_that_is_needed_is_not_deleted(client: httpx.Client, prompts: str, judge: Model) -> None:
    body = {"base_model": "demo-base", "dataset": prompts, "stage": "rl", "hyperparameters": {"reward": judge.name}}
    job = client.post("/jobs", json=body).raise_for_status().json()
    refused = client.delete(f"/models/{judge.name}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    with reading() as session:
        spec = JobSpec.model_validate({"stage": "rl", "hyperparameters": job["hyperparameters"]})
        found = reward_models.fetch(session, spec)
    assert Path(found[judge.id].folder, "model.safetensors").read_bytes() == b"weights"
    assert found[judge.id].chat_template == "judged so"
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    assert client.delete(f"/models/{judge.name}").status_code == 204
    with reading() as session, pytest.raises(FileNotFoundError):
        reward_models.fetch(session, spec)
