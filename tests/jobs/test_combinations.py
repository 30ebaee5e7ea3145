"""Which stage goes with which method and way of deploying: each is accepted and resolved, or refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest

from app.datasets.canonical import SCHEMAS
from app.datasets.tables import Dataset
from app.jobs.combinations import STAGES, TRIED_FAMILIES
from app.jobs.methods import METHODS
from app.jobs.rules import RULES, require_rows
from app.jobs.spec import JobSpec
from app.kit.errors import InvalidValue
from app.models.tables import Model

MODES = ("auto", "adapter", "merged", "none")
COLUMNS: dict[str, dict[str, Any]] = {
    "lora": {}, "rslora": {"variant": "rslora"}, "dora": {"variant": "dora"}, "pissa": {"variant": "pissa"},
    "qlora": {"type": "qlora"}, "full": {"type": "full"}, "freeze": {"type": "freeze"}, "galore": {"type": "galore"},
    "apollo": {"type": "apollo"}, "mod": {"type": "mod"},
}  # fmt: skip
# a: an adapter, unless something else is asked for. m: whole weights; an adapter is refused. x: the method is refused.
TABLE = {
    #                         lora rslora dora pissa qlora full freeze galore apollo mod
    "sft":                    "a   a      m    a     a     m    m      m      m      m",
    "pt":                     "a   a      m    a     a     m    m      m      m      m",
    "pt from random weights": "x   x      x    x     x     m    x      m      m      m",
    "dpo":                    "a   a      m    a     a     m    m      m      m      x",
    "kto":                    "a   a      m    a     a     m    m      m      m      x",
    "rl":                     "a   a      m    a     a     m    m      m      m      x",
    "rm":                     "m   m      m    m     x     m    m      m      m      x",
}  # fmt: skip
# What each mode comes to, or which field is named where it is refused.
OUTCOMES = {
    "a": {"auto": "adapter", "adapter": "adapter", "merged": "merged", "none": "none"},
    "m": {"auto": "merged", "adapter": "deploy.mode is refused", "merged": "merged", "none": "none"},
    "x": dict.fromkeys(MODES, "method.type is refused"),
}
ROWS = {"sft": "chat", "pt": "text", "dpo": "preference", "kto": "labels", "rm": "preference", "rl": "prompts"}


def dataset_of(kind: str) -> Dataset:
    return Dataset(id="ds_1", kind=kind, rows=20, statistics={})


def refusal(error: InvalidValue) -> str:
    assert error.hint
    return f"{error.param} is refused"


def outcome(row: str, method: dict[str, Any], mode: str, **facts: Any) -> str:
    stage, _, random = row.partition(" ")
    settings = {"initial_weights": "random"} if random else {}
    spec = JobSpec.model_validate(
        {"stage": stage, "method": method, "hyperparameters": settings, "deploy": {"mode": mode}}
    )
    known = {"model_type": "qwen2", "max_length": 2048, "hidden_size": 64}
    base = Model(name="base", kind="base", chat_template="{{ messages }}", facts=known | facts)
    try:
        for rule in RULES:
            rule.check(spec, base, dataset_of(ROWS[stage]))
    except InvalidValue as error:
        return refusal(error)
    return spec.deploy.mode


@pytest.mark.parametrize("row", TABLE)
def test_each_method_of_a_stage_is_deployed_or_refused_as_the_table_says(row: str) -> None:
    expected = {name: OUTCOMES[cell] for name, cell in zip(COLUMNS, TABLE[row].split(), strict=True)}
    assert {name: {mode: outcome(row, method, mode) for mode in MODES} for name, method in COLUMNS.items()} == expected


def test_a_model_s_own_code_scores_nothing() -> None:
    assert outcome("rm", {}, "auto", own_code=True) == "base_model is refused"
    assert outcome("sft", {}, "auto", own_code=True) == "adapter"


def test_rewards_are_learned_on_types_that_they_were_tried_on() -> None:
    assert outcome("rm", {}, "auto", model_type="cohere2") == "base_model is refused"
    assert {outcome("rm", {}, "auto", model_type=type) for type in TRIED_FAMILIES} == {"merged"}


@pytest.mark.parametrize("row", TABLE)
def test_on_an_architecture_alone_only_random_weights_are_trained(row: str) -> None:
    expected = "merged" if row == "pt from random weights" else "base_model is refused"
    assert outcome(row, {"type": "full"}, "auto", architecture_only=True) == expected


def test_the_table_has_every_stage_and_method() -> None:
    assert {row.split()[0] for row in TABLE} == set(STAGES)
    assert {method.get("type", "lora") for method in COLUMNS.values()} == set(METHODS)


@pytest.mark.parametrize("stage", ROWS)
def test_a_stage_takes_rows_of_its_kind_alone(stage: str) -> None:
    def found(kind: str) -> str:
        try:
            require_rows(JobSpec.model_validate({"stage": stage}), dataset_of(kind), "dataset")
        except InvalidValue as error:
            return refusal(error)
        return "accepted"

    others = dict.fromkeys(SCHEMAS, "dataset is refused")
    assert {kind: found(kind) for kind in SCHEMAS} == others | {ROWS[stage]: "accepted"}
