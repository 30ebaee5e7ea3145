"""POST /jobs: what is accepted is written out in full, what cannot work is refused with the field named."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from app.jobs.hyperparameters import auto_epochs


def test_two_fields_are_enough_and_every_default_is_written_out(client: httpx.Client, dataset: str) -> None:
    answer = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["status"] == "queued"
    assert job["method"] == {
        "type": "lora", "rank": 8, "alpha": 16, "dropout": 0, "target_modules": "all-linear", "plus": None, "variant": None
    }  # fmt: skip
    assert job["hyperparameters"] == {
        "epochs": 3,
        "max_steps": None,
        "learning_rate": 0.00249,
        "batch_size": 16,
        "max_length": 2048,
        "warmup_ratio": 0.1,
        "scheduler": "cosine",
        "weight_decay": 0,
        "max_grad_norm": 1,
        "gradient_checkpointing": False,
        "checkpoint_every": "auto",
        "keep_checkpoints": 2,
        "deterministic": False,
        "seed": 42,
        "neftune_alpha": None,
    }
    assert job["check"] == {"max_cut_share": 0.2}
    assert job["deploy"] == {"mode": "adapter", "reason": "The adapter is loaded beside its base."}
    assert client.get(f"/jobs/{job['id']}").json() == job


REFUSALS: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"base_model": "nobody"}, 422, "model_not_found", "base_model"),
    ({"dataset": "ds_none"}, 422, "dataset_not_found", "dataset"),
    ({"validation": {"dataset": "ds_none"}}, 422, "dataset_not_found", "validation.dataset"),
    ({"validation": {}}, 422, "invalid_value", "validation"),
    ({"validation": {"fraction": 0.9}}, 422, "invalid_value", "validation.fraction"),
    ({"validation": {"dataset": "ds_none", "seed": 1}}, 422, "invalid_value", "validation"),
    ({"learning_rate": 1e-4}, 422, "unknown_field", "learning_rate"),
    ({"method": {"rank": 128}}, 422, "invalid_value", "method.rank"),
    ({"method": {"rank": 0}}, 422, "invalid_value", "method.rank"),
    ({"method": {"type": "mora"}}, 422, "invalid_value", "method.type"),
    ({"method": {"type": 3}}, 422, "invalid_value", "method.type"),
    ({"method": "lora"}, 422, "invalid_value", "method"),
    ({"method": {"type": "full", "rank": 4}}, 422, "unknown_field", "method.rank"),
    ({"method": {"type": "qlora", "variant": "dora"}}, 422, "invalid_value", "method.variant"),
    ({"method": {"type": "full"}, "deploy": {"mode": "adapter"}}, 422, "invalid_value", "deploy.mode"),
    ({"method": {"variant": "dora"}, "deploy": {"mode": "adapter"}}, 422, "invalid_value", "deploy.mode"),
    ({"method": {"variant": "pissa", "rank": 40}}, 422, "invalid_value", "method.rank"),
    ({"hyperparameters": {"beta": 0.1}}, 422, "unknown_field", "hyperparameters.beta"),
    ({"method": {"target_modules": ["q_proj", "nothing"]}}, 422, "invalid_value", "method.target_modules.1"),
    ({"hyperparameters": {"epochs": -1}}, 422, "invalid_value", "hyperparameters.epochs"),
    ({"hyperparameters": {"epochs": "many"}}, 422, "invalid_value", "hyperparameters.epochs"),
    ({"hyperparameters": {"learning_rate": "fast"}}, 422, "invalid_value", "hyperparameters.learning_rate"),
    ({"hyperparameters": {"keep_checkpoints": 0}}, 422, "invalid_value", "hyperparameters.keep_checkpoints"),
    ({"hyperparameters": {"lr": 1}}, 422, "unknown_field", "hyperparameters.lr"),
    ({"hyperparameters": {"max_length": 4096}}, 422, "invalid_value", "hyperparameters.max_length"),
    ({"check": {"max_cut_share": 2}}, 422, "invalid_value", "check.max_cut_share"),
    ({"deploy": {"mode": "nowhere"}}, 422, "invalid_value", "deploy.mode"),
    ({"stage": "ppo"}, 422, "invalid_value", "stage"),
    ({"stage": "dpo"}, 422, "invalid_value", "dataset"),
    ({"stage": "dpo", "hyperparameters": {"beta": 0}}, 422, "invalid_value", "hyperparameters.beta"),
    ({"name": "Not A Name"}, 422, "invalid_value", "name"),
    ({"name": "demo-base"}, 409, "name_taken", "name"),
    ({"metadata": {"a": 1}}, 422, "invalid_value", "metadata.a"),
]


@pytest.mark.parametrize(("change", "status", "code", "param"), REFUSALS)
def test_what_cannot_work_is_refused_with_the_field_named(
    client: httpx.Client, dataset: str, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    before = client.get("/jobs", params={"limit": 1}).json()["data"]
    answer = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["message"]
    assert error["hint"]
    assert client.get("/jobs", params={"limit": 1}).json()["data"] == before


def test_missing_fields_and_broken_json_say_so(client: httpx.Client) -> None:
    error = client.post("/jobs", json={"base_model": "demo-base"}).json()["error"]
    assert (error["code"], error["param"]) == ("missing_field", "dataset")
    broken = client.post("/jobs", content=b'{"base_model": ', headers={"Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    form = client.post("/jobs", data={"base_model": "demo-base"})
    assert (form.status_code, form.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_the_seed_of_the_split_is_the_job_s_or_its_own(client: httpx.Client, dataset: str) -> None:
    body = {"base_model": "demo-base", "dataset": dataset, "hyperparameters": {"seed": 7}}
    for given, written in (({}, 7), ({"seed": 0}, 0)):
        job = client.post("/jobs", json=body | {"validation": {"fraction": 0.5} | given}).json()
        assert job["validation"] == {"dataset": None, "fraction": 0.5, "seed": written}


def test_a_name_is_taken_once_also_by_two_at_the_same_time(client: httpx.Client, dataset: str) -> None:
    body = {"base_model": "demo-base", "dataset": dataset, "name": f"twice-{dataset[-6:]}"}
    answers: list[int] = []
    racers = [
        threading.Thread(
            target=lambda: answers.append(httpx.post(f"{client.base_url}/jobs", json=body, timeout=60).status_code)
        )
        for _ in range(4)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(answers) == [202, 409, 409, 409]


def test_a_cancelled_job_gives_its_name_back(client: httpx.Client, dataset: str) -> None:
    body = {"base_model": "demo-base", "dataset": dataset, "name": f"again-{dataset[-6:]}"}
    first = client.post("/jobs", json=body).json()
    assert client.post(f"/jobs/{first['id']}/cancel").json()["status"] == "cancelled"
    assert client.post("/jobs", json=body).status_code == 202


@pytest.mark.parametrize(("rows", "epochs"), [(1, 3), (8333, 3), (8334, 2), (12_500, 2), (12_501, 1), (10**9, 1)])
def test_many_rows_are_passed_over_less_often(rows: int, epochs: float) -> None:
    assert auto_epochs(rows) == epochs


def test_a_reward_model_is_served_with_its_weights_and_not_trained_on_quantised_ones(client: httpx.Client) -> None:
    row = b'{"prompt": "a", "chosen": "b", "rejected": "c"}'
    dataset = client.post("/datasets", content=row).raise_for_status().json()
    body = {"base_model": "demo-base", "dataset": dataset["id"], "stage": "rm"}
    made = client.post("/jobs", json=body).raise_for_status().json()
    assert made["deploy"]["mode"] == "merged"
    assert client.post("/jobs", json=body | {"deploy": {"mode": "adapter"}}).json()["error"]["param"] == "deploy.mode"
    refused = client.post("/jobs", json=body | {"method": {"type": "qlora"}})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (422, "unsupported", "method.type")
    random = {"stage": "pt", "hyperparameters": {"initial_weights": "random"}}
    text = client.post("/datasets", params={"format": "text"}, content=b'{"text": "a"}').raise_for_status().json()
    refused = client.post("/jobs", json=body | random | {"dataset": text["id"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "method.type")
