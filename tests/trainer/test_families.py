"""Small models of every family: each trains, plain PEFT loads what comes out, and it merges into the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.models.inspection import inspect_model
from benchmarks.families import FAMILIES, TINY, make
from tests.trainer.conftest import Run, chat, scores_as_told, write_rows

LONGER_THAN_A_WINDOW = "Count on and on, to the very end of all that there is to be counted here today. " * 2


def load(folder: Path, own: bool) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=own).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_adapter_is_loaded_by_peft_and_merged_alike(
    train: Run, tokenizer: Any, tmp_path: Path, name: str
) -> None:
    family = FAMILIES[name]
    own, folder = family.code is not None, make(family, tmp_path / "base", TINY)
    facts, _ = inspect_model(folder)
    assert facts.get("own_code", False) is own
    rows = write_rows(tmp_path / "one.parquet", [chat(LONGER_THAN_A_WINDOW, "It is so.")] * 4)
    one_step = {"max_steps": 1, "learning_rate": 0.05, "warmup_ratio": 0}
    events = train(base_model=str(folder), own_code=own, rows=rows, hyperparameters=one_step, deploy={"mode": "merged"})
    assert [event["step"] for event in events if event["type"] == "step"] == [1]

    out = tmp_path / "out"
    ids = tokenizer(LONGER_THAN_A_WINDOW, return_tensors="pt").input_ids
    peft_model = PeftModel.from_pretrained(load(folder, own), out / "adapter")
    adapted = {module.rpartition(".")[2] for module, part in peft_model.named_modules() if hasattr(part, "lora_A")}
    assert adapted == set(facts["modules"])
    with torch.no_grad():
        tuned, merged = (model(input_ids=ids).logits for model in (peft_model, load(out / "merged", own)))
        base = load(folder, own)(input_ids=ids).logits
    assert not torch.allclose(tuned, base, atol=1e-3)
    torch.testing.assert_close(tuned, merged, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.code])
def test_a_family_learns_rewards_on_its_own_weights_and_on_those_of_a_fine_tune(
    train: Run, rows_of: Any, tmp_path: Path, name: str
) -> None:
    folder, rows = make(FAMILIES[name], tmp_path / "base", TINY), rows_of("preference")
    one_step = {"max_steps": 1, "learning_rate": 0.05, "warmup_ratio": 0}
    train(base_model=str(folder), hyperparameters=one_step, out="tuned")
    for out, adapter in (("whole", None), ("on", str(tmp_path / "tuned/adapter"))):
        settings = {"learning_rate": 0.01, "epochs": 6}
        events = train(
            base_model=str(folder), adapter=adapter, rows=rows, stage="rm", hyperparameters=settings, out=out,
            validation={"dataset": "ds_others"}, validation_rows=rows_of("preference", first=50),
        )  # fmt: skip
        *_, last = (event for event in events if event["type"] == "validation")
        assert last["reward_accuracy"] > 0.9
        scores_as_told(tmp_path / out)


@pytest.mark.parametrize(("modules", "weights"), [("all-linear", "merged"), (["q_proj"], "adapter")])
def test_what_is_only_stored_is_stored_as_vllm_loads_it(
    train: Run, tmp_path: Path, modules: str | list[str], weights: str
) -> None:
    folder = make(FAMILIES["glm4"], tmp_path / "base", TINY)
    rows = write_rows(tmp_path / "one.parquet", [chat("Red?", "Blue.")] * 4)
    method = {"type": "lora", "target_modules": modules}
    train(base_model=str(folder), rows=rows, method=method, hyperparameters={"max_steps": 1}, deploy={"mode": "none"})
    assert (tmp_path / "out" / "merged").is_dir() is (weights == "merged")
