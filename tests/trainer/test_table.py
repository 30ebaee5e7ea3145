"""Every stage and every method learns, and plain libraries load what it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.jobs.combinations import STAGES as KINDS
from app.jobs.combinations import served
from app.jobs.methods import Qlora
from app.jobs.spec import JobSpec
from tests.trainer.conftest import Run, scores_as_told
from tests.trainer.rows_of_the_table import ALL, job
from worker.trainer.base import Base
from worker.trainer.depths import load_routers
from worker.trainer.methods import qlora


def logprob(model: Any, token_ids: list[int]) -> float:
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([token_ids[:-1]])).logits[0, -1]
    return float(logits.float().log_softmax(-1)[token_ids[-1]])


@pytest.mark.parametrize("name", ALL)
def test_it_learns_and_plain_libraries_load_it(
    train: Run, rows_of: Callable[..., str], base_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    changes = job(ALL[name])
    spec = JobSpec.model_validate(changes)
    kind, mode = KINDS[spec.stage].rows, served(spec.stage, spec.method).mode
    base = base_of(spec.stage)
    # The first step's loss is the untrained model's, on rows such as those that are held out.
    others = {"validation_rows": rows_of(kind, first=50), "validation": {"dataset": "ds_others"}}
    events = train(base_model=str(base), rows=rows_of(kind), deploy={"mode": mode}, **others, **changes)
    steps, out = [event for event in events if event["type"] == "step"], tmp_path / "out"
    *_, last = (event for event in events if event["type"] == "validation")
    if spec.stage == "rl":
        assert last["reward"] > 0.5 + sum(step["reward"] for step in steps[:3]) / 3
        assert last["loss"] == -last["reward"]
    else:
        assert last["loss"] < 0.8 * steps[0]["loss"]
    if spec.stage in ("dpo", "kto", "rm"):
        assert last["reward_accuracy"] > 0.9
    proof = json.loads((out / "proof.json").read_text())
    if spec.stage == "rm":
        scores_as_told(out)
        return
    if mode == "merged":
        model = AutoModelForCausalLM.from_pretrained(out / "merged")
        if spec.method.type == "mod":
            load_routers(model, out / "merged")
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "adapter")
    # The trainer computes in bfloat16 where the machine is quick in it, and QLoRA's with a coarser base.
    tolerance = 1.0 if spec.method.type == "qlora" else 0.15
    served_as = logprob(model, proof["token_ids"])
    assert served_as == pytest.approx(proof["tuned_logprob"], abs=tolerance)
    assert abs(served_as - proof["tuned_logprob"]) < abs(served_as - proof["base_logprob"])


def test_a_text_longer_than_a_row_becomes_several_and_loses_nothing(train: Run, rows_of: Callable[[str], str]) -> None:
    def started(out: str, **settings: Any) -> dict[str, Any]:
        events = train(out=out, stage="pt", rows=rows_of("text"), hyperparameters={"max_steps": 1, **settings})
        return next(event for event in events if event["type"] == "started")

    pieces, whole = started("pieces", max_length=16), started("whole")
    assert pieces["examples"] > whole["examples"] == pieces["rows"] == 42
    assert 0 <= whole["tokens"] - pieces["tokens"] < 42  # a last piece of one token has nothing to learn
    assert (pieces["cut_rows"], pieces["tokens_lost"]) == (0, 0)


def test_what_no_engine_loads_as_an_adapter_is_merged_also_where_it_is_only_stored(train: Run, tmp_path: Path) -> None:
    train(method={"variant": "dora"}, deploy={"mode": "none"}, hyperparameters={"max_steps": 1})
    assert (tmp_path / "out/merged/model.safetensors").is_file()
    train(out="plain", deploy={"mode": "none"}, hyperparameters={"max_steps": 1})
    assert not (tmp_path / "plain/merged").exists()


def test_gradients_go_through_quantised_weights_also_after_the_model_was_only_asked(taught: Path) -> None:
    base, method = Base(str(taught)), Qlora(type="qlora")
    model = qlora.prepare(qlora.load_base(base, method), method)
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    first = next(p for name, p in model.named_parameters() if "layers.0" in name and "lora_B" in name)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
