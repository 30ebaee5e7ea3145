"""POST /jobs: what is accepted is written out in full, what cannot work is refused with the field named."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.jobs.hyperparameters import auto_epochs
from tests.models.own import config, folder

__all__ = ["folder"]


def registered(client: httpx.Client, folder: Path, **fields: Any) -> str:
    """The name of a base model whose configuration has these fields."""
    config(folder, **fields)
    name = f"m-{secrets.token_hex(4)}"
    client.post("/models", json={"name": name, "source": str(folder)}).raise_for_status()
    return name


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
        "precision": "auto",
        "sharding": "none",
        "gradient_checkpointing": False,
        "checkpoint_every": "auto",
        "keep_checkpoints": 2,
        "deterministic": False,
        "seed": 42,
        "packing": "auto",
        "neftune_alpha": None,
    }
    assert job["check"] == {"max_cut_share": 0.2, "scorecard": True}
    assert job["deploy"] == {"mode": "adapter", "reason": "The adapter is loaded beside its base."}
    assert client.get(f"/jobs/{job['id']}").json() == job


REFUSALS: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"base_model": "nobody"}, 422, "model_not_found", "base_model"),
    ({"dataset": "ds_none"}, 422, "dataset_not_found", "dataset"),
    ({"validation": {"dataset": "ds_none"}}, 422, "dataset_not_found", "validation.dataset"),
    ({"validation": {}}, 422, "invalid_value", "validation"),
    ({"validation": {"fraction": 0.9}}, 422, "invalid_value", "validation.fraction"),
    ({"validation": {"dataset": "ds_none", "seed": 1}}, 422, "invalid_value", "validation"),
    ({"validation": {"fraction": 0.1, "every": 0}}, 422, "invalid_value", "validation.every"),
    ({"validation": {"fraction": 0.1, "every": "day"}}, 422, "invalid_value", "validation.every"),
    ({"validation": {"fraction": 0.1, "patience": 0}}, 422, "invalid_value", "validation.patience"),
    ({"validation": {"fraction": 0.1, "keep": "all"}}, 422, "invalid_value", "validation.keep"),
    ({"validation": {"patience": 1}}, 422, "invalid_value", "validation"),
    ({"replay": {"dataset": "ds_none"}}, 422, "dataset_not_found", "replay.dataset"),
    ({"replay": {"dataset": "ds_none", "fraction": 1}}, 422, "invalid_value", "replay.fraction"),
    ({"replay": {}}, 422, "missing_field", "replay.dataset"),
    ({"learning_rate": 1e-4}, 422, "unknown_field", "learning_rate"),
    ({"method": {"rank": 128}}, 422, "invalid_value", "method.rank"),
    ({"method": {"rank": 0}}, 422, "invalid_value", "method.rank"),
    ({"method": {"type": "mora"}}, 422, "invalid_value", "method.type"),
    ({"method": {"type": 3}}, 422, "invalid_value", "method.type"),
    ({"method": "lora"}, 422, "invalid_value", "method"),
    ({"method": {"type": "full", "rank": 4}}, 422, "unknown_field", "method.rank"),
    ({"method": {"type": "galore", "alpha": 4}}, 422, "unknown_field", "method.alpha"),
    ({"method": {"type": "apollo", "update_interval": 0}}, 422, "invalid_value", "method.update_interval"),
    ({"method": {"type": "galore"}, "deploy": {"mode": "adapter"}}, 422, "invalid_value", "deploy.mode"),
    ({"method": {"type": "qlora", "variant": "dora"}}, 422, "invalid_value", "method.variant"),
    ({"method": {"type": "full"}, "deploy": {"mode": "adapter"}}, 422, "invalid_value", "deploy.mode"),
    ({"method": {"variant": "dora"}, "deploy": {"mode": "adapter"}}, 422, "invalid_value", "deploy.mode"),
    ({"method": {"variant": "pissa", "rank": 40}}, 422, "invalid_value", "method.rank"),
    ({"method": {"rank": 128}, "deploy": {"mode": "none"}}, 422, "invalid_value", "method.rank"),
    ({"method": {"type": "freeze", "layers": 6}}, 422, "invalid_value", "method.layers"),
    ({"hyperparameters": {"beta": 0.1}}, 422, "unknown_field", "hyperparameters.beta"),
    ({"method": {"target_modules": ["q_proj", "nothing"]}}, 422, "invalid_value", "method.target_modules.1"),
    ({"method": {"target_modules": ["embed_tokens"]}}, 422, "invalid_value", "method.target_modules.0"),
    ({"hyperparameters": {"epochs": -1}}, 422, "invalid_value", "hyperparameters.epochs"),
    ({"hyperparameters": {"epochs": "many"}}, 422, "invalid_value", "hyperparameters.epochs"),
    ({"hyperparameters": {"learning_rate": "fast"}}, 422, "invalid_value", "hyperparameters.learning_rate"),
    ({"hyperparameters": {"keep_checkpoints": 0}}, 422, "invalid_value", "hyperparameters.keep_checkpoints"),
    ({"hyperparameters": {"lr": 1}}, 422, "unknown_field", "hyperparameters.lr"),
    ({"hyperparameters": {"max_length": 4096}}, 422, "invalid_value", "hyperparameters.max_length"),
    ({"hyperparameters": {"precision": "fp8"}}, 422, "invalid_value", "hyperparameters.precision"),
    (
        {"hyperparameters": {"precision": "fp16"}, "resources": {"gpus": 0}},
        422,
        "unsupported",
        "hyperparameters.precision",
    ),
    ({"hyperparameters": {"packing": "always"}}, 422, "invalid_value", "hyperparameters.packing"),
    ({"stage": "dpo", "hyperparameters": {"packing": True}}, 422, "unknown_field", "hyperparameters.packing"),
    ({"hyperparameters": {"packing": True, "neftune_alpha": 5}}, 422, "unsupported", "hyperparameters.packing"),
    ({"hyperparameters": {"packing": True}, "method": {"type": "mod"}}, 422, "unsupported", "hyperparameters.packing"),
    ({"check": {"max_cut_share": 2}}, 422, "invalid_value", "check.max_cut_share"),
    ({"check": {"scorecard": 3}}, 422, "invalid_value", "check.scorecard"),
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


@pytest.mark.parametrize(("type", "scale"), [("galore", 2.0), ("apollo", 32.0)])
def test_an_optimiser_of_low_rank_has_a_rank_of_its_own_which_no_engine_limits(
    client: httpx.Client, dataset: str, type: str, scale: float
) -> None:
    body = {"base_model": "demo-base", "dataset": dataset, "method": {"type": type}}
    job = client.post("/jobs", json=body).raise_for_status().json()
    assert job["method"] == {"type": type, "rank": 16, "update_interval": 200, "scale": scale}
    assert job["deploy"]["mode"] == "merged"
    full = client.post("/jobs", json=body | {"method": {"type": "full"}}).raise_for_status().json()
    assert job["hyperparameters"] == full["hyperparameters"]
    wide = client.post("/jobs", json=body | {"method": {"type": type, "rank": 128}})
    assert wide.status_code == 202


def test_mixture_of_depths_is_refused_where_it_was_not_shown_to_work(
    client: httpx.Client, dataset: str, folder: Path
) -> None:
    def refused(**body: Any) -> dict[str, Any]:
        answer = client.post("/jobs", json={"dataset": dataset, "method": {"type": "mod"}} | body)
        error: dict[str, Any] = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "unsupported"), error
        return error

    made = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset, "method": {"type": "mod"}}).json()
    assert made["method"] == {"type": "mod", "capacity": 0.125}
    assert made["deploy"]["mode"] == "merged"
    assert "embedded engine" in made["deploy"]["reason"]
    preferences = client.post("/datasets", content=b'{"prompt": "a", "chosen": "b", "rejected": "c"}').json()["id"]
    for stage in ("dpo", "rm"):
        assert refused(base_model="demo-base", dataset=preferences, stage=stage)["param"] == "method.type"
    assert "gemma2" in refused(base_model=registered(client, folder, model_type="gemma2"))["message"]
    routed = registered(client, folder, model_type="qwen2", mixture_of_depths={"capacity": 0.5})
    for method in ("mod", "lora", "full"):
        assert refused(base_model=routed, method={"type": method})["param"] == "base_model"


def test_packing_is_refused_on_a_family_that_it_was_not_shown_to_work_on(
    client: httpx.Client, dataset: str, folder: Path
) -> None:
    name = registered(client, folder, model_type="olmo2")
    body = {"base_model": name, "dataset": dataset, "hyperparameters": {"packing": True}}
    error = client.post("/jobs", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported", "hyperparameters.packing")
    assert "'olmo2'" in error["message"]
    made = client.post("/jobs", json=body | {"base_model": "demo-base"}).raise_for_status().json()
    assert made["hyperparameters"]["packing"] is True
    auto = client.post("/jobs", json=body | {"hyperparameters": {}}).raise_for_status().json()
    assert (auto["hyperparameters"]["packing"], auto["hyperparameters"]["precision"]) == ("auto", "auto")


def test_an_adapter_that_vllm_does_not_load_is_merged_unless_it_is_asked_for(
    client: httpx.Client, dataset: str, folder: Path
) -> None:
    name = registered(client, folder, model_type="glm4")

    def deployed(**body: Any) -> dict[str, Any]:
        answer = client.post("/jobs", json={"base_model": name, "dataset": dataset} | body).raise_for_status()
        deploy: dict[str, Any] = answer.json()["deploy"]
        return deploy

    own = deployed()
    assert own["mode"] == "merged"
    assert "vLLM" in own["reason"]
    assert deployed(deploy={"mode": "adapter"})["mode"] == "adapter"
    assert deployed(base_model="demo-base")["mode"] == "adapter"


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
        assert job["validation"] == {
            "dataset": None, "fraction": 0.5, "seed": written, "every": "epoch", "patience": None, "keep": "last"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, "last"), ({"patience": 2}, "best"), ({"patience": 2, "keep": "last"}, "last"), ({"keep": "best"}, "best")],
)
def test_with_patience_the_best_is_kept_unless_something_else_is_said(
    client: httpx.Client, dataset: str, given: dict[str, Any], kept: str
) -> None:
    body = {"base_model": "demo-base", "dataset": dataset, "validation": {"fraction": 0.5, "every": 10} | given}
    job = client.post("/jobs", json=body).raise_for_status().json()
    assert job["validation"]["keep"] == kept
    assert client.get(f"/jobs/{job['id']}").json()["validation"] == job["validation"]


def test_rows_that_are_mixed_in_are_of_the_stage_s_kind_and_stay_while_the_job_lives(
    client: httpx.Client, dataset: str
) -> None:
    rows = f'{{"instruction": "{dataset}", "output": "b"}}'.encode()
    general = client.post("/datasets", content=rows).raise_for_status().json()["id"]
    text = client.post("/datasets", params={"format": "text"}, content=b'{"text": "a"}').raise_for_status().json()["id"]
    body = {"base_model": "demo-base", "dataset": dataset}
    job = client.post("/jobs", json=body | {"replay": {"dataset": general}}).raise_for_status().json()
    assert job["replay"] == {"dataset": general, "fraction": 0.1}
    refused = client.delete(f"/datasets/{general}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    error = client.post("/jobs", json=body | {"replay": {"dataset": text}}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "replay.dataset")
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    client.delete(f"/datasets/{general}").raise_for_status()


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
