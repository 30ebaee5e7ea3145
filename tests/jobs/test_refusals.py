"""What is wrong with a job is said all at once, and nothing is said that only follows from something else."""

from __future__ import annotations

import itertools
from typing import Any, cast

import httpx
import pytest

from app.datasets.tables import Dataset
from app.jobs.combinations import STAGES
from app.jobs.gpu_rules import GPU_RULES
from app.jobs.methods import METHODS
from app.jobs.rules import RULES, apply
from app.jobs.spec import JobSpec
from app.kit.errors import Refusals
from app.models.tables import Model

Entry = tuple[str | None, str]


def refusals(client: httpx.Client, dataset: str, change: dict[str, Any], dry_run: bool) -> list[Entry]:
    """(param, code) of everything that is refused, in order."""
    body = {"base_model": "demo-base", "dataset": dataset} | change
    answer = client.post("/jobs", params={"dry_run": dry_run}, json=body)
    assert answer.status_code in (409, 422), answer.text
    error = answer.json()["error"]
    entries = error.get("errors", [error])
    assert {key: error[key] for key in ("param", "code", "message", "hint")} == {
        key: entries[0][key] for key in ("param", "code", "message", "hint")
    }
    assert all(entry["message"] and entry["hint"] for entry in entries)
    return [(entry["param"], entry["code"]) for entry in entries]


SEVERAL: list[tuple[dict[str, Any], list[Entry]]] = [
    (
        {"base_model": "nobody", "dataset": "ds_none", "validation": {"dataset": "ds_no"}, "replay": {"dataset": "ds_never"}},
        [("base_model", "model_not_found"), ("dataset", "dataset_not_found"), ("validation.dataset", "dataset_not_found"),
         ("replay.dataset", "dataset_not_found")],
    ),
    # What is said of a base model's modules, context and layers follows from which one it is.
    (
        {"base_model": "nobody", "method": {"target_modules": ["x"]}, "hyperparameters": {"max_length": 4096}},
        [("base_model", "model_not_found")],
    ),
    (
        {"base_model": "nobody", "stage": "rl", "hyperparameters": {"batch_size": 11, "reward": "none"}},
        [("base_model", "model_not_found"), ("dataset", "invalid_value"),
         ("hyperparameters.reward.0.model", "model_not_found"), ("hyperparameters.batch_size", "invalid_value")],
    ),
    (
        {"method": {"target_modules": ["a", "q_proj", "b"]}, "hyperparameters": {"max_length": 4096}, "name": "demo-base"},
        [("method.target_modules.0", "invalid_value"), ("method.target_modules.2", "invalid_value"),
         ("hyperparameters.max_length", "invalid_value"), ("name", "name_taken")],
    ),
    (
        {"method": {"type": "full"}, "deploy": {"mode": "adapter"}, "hyperparameters": {"sharding": "full", "precision": "fp16"},
         "resources": {"gpus": 0}},
        [("hyperparameters.sharding", "invalid_value"), ("hyperparameters.precision", "unsupported"),
         ("deploy.mode", "invalid_value")],
    ),
    (
        {"stage": "dpo", "hyperparameters": {"sharding": "full"}, "resources": {"gpus": 32}},
        [("dataset", "invalid_value"), ("hyperparameters.sharding", "unsupported"), ("resources.gpus", "invalid_value")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), SEVERAL)
@pytest.mark.parametrize("dry_run", [False, True])
def test_independent_refusals_come_together(
    client: httpx.Client, dataset: str, change: dict[str, Any], expected: list[Entry], dry_run: bool
) -> None:
    assert refusals(client, dataset, change, dry_run) == expected


def test_the_status_is_the_first_refusal_s(client: httpx.Client, dataset: str) -> None:
    body = {"base_model": "demo-base", "dataset": dataset, "name": "demo-base"}
    assert client.post("/jobs", json=body).status_code == 409
    both = client.post("/jobs", json=body | {"hyperparameters": {"max_length": 4096}})
    assert (both.status_code, both.json()["error"]["errors"][1]["code"]) == (422, "name_taken")


class Missing:
    """Stands for a base model or a dataset that does not exist: no rule may look at it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a rule that does not say so looks at {name}")


SPECS = [
    {"stage": stage, "method": {"type": method}} | more
    for stage, method, more in itertools.product(
        STAGES,
        METHODS,
        ({}, {"validation": {"fraction": 0.5}, "chat_template": "chatml", "hyperparameters": {"max_length": 64}}),
    )
]


@pytest.mark.parametrize("gone", ["base_model", "dataset"])
def test_a_rule_that_looks_at_what_may_not_exist_says_so(gone: str) -> None:
    base = Model(name="base", kind="base", chat_template="{{ messages }}", facts={"hidden_size": 8})
    dataset = Dataset(id="ds_1", kind="chat", rows=20, statistics={})
    missing = cast(Any, Missing())
    rules = [rule for rule in RULES if gone not in rule.reads]
    assert len(rules) < len(RULES)
    for spec in SPECS:
        about = (missing, dataset) if gone == "base_model" else (base, missing)
        apply(rules, Refusals(), JobSpec.model_validate(spec), *about)


def test_rules_read_fields_that_there_are(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()["components"]["schemas"]
    fields = set(document["JobCreate"]["properties"])
    for rule in (*RULES, *GPU_RULES):
        for field in rule.reads:
            assert field.partition(".")[0] in fields, field
