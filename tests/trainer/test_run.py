"""Whole runs on a small model: events, artifacts, and the ways to fail."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from app.datasets.canonical import SCHEMAS
from app.jobs.combinations import STAGES
from app.jobs.spec import Merge
from tests.trainer.conftest import Run, chat, write_rows
from worker.trainer.data.conversation import Message
from worker.trainer.failures import Failure


def of_type(events: list[dict[str, Any]], type: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == type]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([token_ids])).logits[0]
    return found


def test_a_run_tells_its_course(train: Run) -> None:
    events = train(hyperparameters={"epochs": 2}, validation={"fraction": 0.1})
    assert [event["phase"] for event in of_type(events, "phase")] == ["loading", "training"]
    [started] = of_type(events, "started")
    assert (started["rows"], started["validation_rows"], started["total_steps"]) == (38, 4, 10)
    steps = of_type(events, "step")
    assert [step["step"] for step in steps] == list(range(1, 11))
    assert sum(step["tokens"] for step in steps) == 2 * started["tokens"]
    assert (steps[4]["epoch"], steps[-1]["epoch"]) == (1.0, 2.0)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [validation["step"] for validation in of_type(events, "validation")] == [5, 10]
    assert events[-1]["type"] == "finished"


@pytest.mark.parametrize(
    ("settings", "steps"), [({"epochs": 0.5}, 3), ({"epochs": 1.5}, 9), ({"max_steps": 4}, 4), ({"max_steps": 99}, 6)]
)
def test_a_run_takes_as_many_steps_as_epochs_and_max_steps_allow(
    train: Run, settings: dict[str, float], steps: int
) -> None:
    events = train(hyperparameters=settings, validation=None)
    assert of_type(events, "started")[0]["total_steps"] == len(of_type(events, "step")) == steps


def test_checkpoints_may_be_taken_away_while_others_are_made(train: Run, tmp_path: Path) -> None:
    """As a supervisor does. A link to nothing is there when names are read and gone when it is opened."""
    folder = tmp_path / "out" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-0").symlink_to("taken")
    events = train(hyperparameters={"epochs": 1, "checkpoint_every": 2})
    assert [each["step"] for each in of_type(events, "checkpoint")] == [2, 4, 6]
    assert events[-1]["type"] == "finished"


def test_the_last_step_is_validated_within_an_epoch_too(train: Run) -> None:
    events = train(hyperparameters={"epochs": 1.5}, validation={"fraction": 0.1})
    assert [validation["step"] for validation in of_type(events, "validation")] == [5, 8]


@pytest.mark.parametrize(
    ("scheduler", "last"), [("constant", 0.01), ("linear", 0.002), ("cosine", 0.005 * (1 + math.cos(math.pi * 0.8)))]
)
def test_the_rate_rises_over_the_warm_up_and_falls_by_the_schedule(train: Run, scheduler: str, last: float) -> None:
    events = train(hyperparameters={"scheduler": scheduler, "warmup_ratio": 0.16})
    rates = [step["learning_rate"] for step in of_type(events, "step")]
    assert rates[:2] == [0.0, 0.01]
    assert rates[-1] == pytest.approx(last)


def test_the_same_spec_gives_the_same_losses_and_adapter_bit_for_bit(train: Run, tmp_path: Path) -> None:
    spec = {"method": {"dropout": 0.1}, "hyperparameters": {"epochs": 2}}
    losses = [[step["loss"] for step in of_type(train(out=out, **spec), "step")] for out in ("one", "two")]
    assert losses[0] == losses[1]
    one, two = (tmp_path / out / "adapter" / "adapter_model.safetensors" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_another_seed_gives_another_adapter(train: Run, tmp_path: Path) -> None:
    for seed in (1, 2):
        train(out=str(seed), hyperparameters={"seed": seed, "max_steps": 1})
    one, two = (tmp_path / out / "adapter" / "adapter_model.safetensors" for out in ("1", "2"))
    assert one.read_bytes() != two.read_bytes()


def test_plain_peft_loads_the_adapter_which_answers_as_the_proof_says(train: Run, base: Path, tmp_path: Path) -> None:
    train(provenance={"base_model": "demo-base", "dataset_sha256": "ab"})
    out = tmp_path / "out"
    proof = json.loads((out / "proof.json").read_text())
    prompt, answer = proof["token_ids"][:-1], proof["token_ids"][-1]
    untuned = logits(load(base), prompt)[-1].log_softmax(-1)[answer].item()
    tuned = logits(PeftModel.from_pretrained(load(base), out / "adapter"), prompt)[-1].log_softmax(-1)[answer].item()
    # The trainer computes in bfloat16 where the machine is quick in it.
    assert proof["base_logprob"] == pytest.approx(untuned, abs=0.1)
    assert proof["tuned_logprob"] == pytest.approx(tuned, abs=0.1)
    assert abs(tuned - untuned) > 0.5
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "demo-base"


def test_merged_weights_answer_as_the_adapter(train: Run, base: Path, tmp_path: Path, tokenizer: Any) -> None:
    train(deploy={"mode": "merged"})
    token_ids = tokenizer("Count to 5.")["input_ids"]
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "out" / "adapter")
    torch.testing.assert_close(logits(load(tmp_path / "out" / "merged"), token_ids), logits(adapted, token_ids))
    assert not torch.allclose(logits(adapted, token_ids), logits(load(base), token_ids), atol=0.1)


def test_the_template_that_was_trained_with_goes_along_to_the_letter(train: Run, tmp_path: Path) -> None:
    template = (
        "{%- for m in messages -%}\n<|im_start|>{{ m.role }}|{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant|{% endif %}{# end #}\n"
    )
    train(chat_template=template, deploy={"mode": "merged"}, hyperparameters={"max_steps": 1})
    for folder in ("adapter", "merged"):
        assert (tmp_path / "out" / folder / "chat_template.jinja").read_text() == template
        assert AutoTokenizer.from_pretrained(tmp_path / "out" / folder).chat_template == template


def test_a_checkpoint_is_all_that_serving_and_training_on_need(train: Run, base: Path, tmp_path: Path) -> None:
    train(hyperparameters={"epochs": 2}, provenance={"base_model": "demo-base"})
    whole, kept = tmp_path / "out", tmp_path / "out/checkpoints"
    assert (kept / "step-12/adapter/adapter_model.safetensors").read_bytes() == (
        whole / "adapter/adapter_model.safetensors"
    ).read_bytes()
    token_ids = AutoTokenizer.from_pretrained(kept / "step-6/adapter")("Count to 5.")["input_ids"]
    early, late = (
        logits(PeftModel.from_pretrained(load(base), kept / step / "adapter"), token_ids)
        for step in ("step-6", "step-12")
    )
    assert not torch.allclose(early, late, atol=0.1)
    template = (whole / "adapter/chat_template.jinja").read_text()
    assert (kept / "step-6/adapter/chat_template.jinja").read_text() == template
    manifest = json.loads((kept / "step-6/manifest.json").read_text())
    assert (manifest["result"]["steps"], manifest["stop_token_ids"]) == (6, [2])
    assert str(base) not in (kept / "step-6/adapter/adapter_config.json").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"type": "full"}}, {"method": {"variant": "dora"}}, {"stage": "rm"},
        {"stage": "rm", "method": {"type": "freeze"}}, {"stage": "rm", "adapter": "before/adapter"},
    ],
    ids=["full", "dora", "rm", "rm by freeze", "rm of an adapter"],
)  # fmt: skip
def test_a_last_checkpoint_is_served_as_the_outcome_is(
    train: Run, rows_of: Callable[[str], str], base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    load(base).to(torch.bfloat16).save_pretrained(half)
    rows = rows_of("preference" if changes.get("stage") == "rm" else "chat")
    if adapter := changes.get("adapter"):
        train(out="before", base_model=str(half), hyperparameters={"max_steps": 2})
        changes = changes | {"adapter": str(tmp_path / adapter)}
    train(base_model=str(half), rows=rows, hyperparameters={"max_steps": 2}, deploy={"mode": "merged"}, **changes)
    [checkpoint] = (tmp_path / "out/checkpoints").glob("step-*")
    served = checkpoint / "merged"
    if not served.is_dir():
        told = json.loads((checkpoint / "manifest.json").read_text())
        template = (checkpoint / "adapter/chat_template.jinja").read_text()
        merge = Merge(
            base_model=str(half), adapter=str(checkpoint / "adapter"), own_code=False, chat_template=template,
            folded=str(checkpoint / "folded") if adapter else None,
            makes=STAGES[told["spec"]["stage"]].makes, stop_token_ids=told["stop_token_ids"],
        )  # fmt: skip
        served = tmp_path / "served"
        (asked := tmp_path / "merge.json").write_text(merge.model_dump_json())
        command = [sys.executable, "-m", "worker.trainer.merging", str(asked), str(served)]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(said.stdout) == {"type": "finished"}, said.stderr
    else:
        assert {weight.dtype for weight in load_file(served / "model.safetensors").values()} == {torch.float32}
    kind = AutoModelForSequenceClassification if changes.get("stage") == "rm" else AutoModelForCausalLM
    its, own = (kind.from_pretrained(folder, dtype="auto").state_dict() for folder in (served, tmp_path / "out/merged"))
    assert its.keys() == own.keys()
    assert all(weight.dtype == torch.bfloat16 and torch.equal(weight, own[name]) for name, weight in its.items())
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (served / name).read_text() == (tmp_path / "out/merged" / name).read_text()


def test_an_adapter_goes_on_from_where_it_was(train: Run, rows: str, base: Path, tmp_path: Path) -> None:
    others = {"validation_rows": rows, "validation": {"dataset": "ds_others"}}
    events = train(out="one", hyperparameters={"epochs": 2}, **others)
    came_to = of_type(events, "validation")[-1]["loss"]
    fresh = of_type(train(out="new", hyperparameters={"batch_size": 42}), "step")[0]["loss"]
    adapter = str(tmp_path / "one/adapter")
    further = train(out="two", adapter=adapter, hyperparameters={"batch_size": 42}, deploy={"mode": "merged"})
    assert of_type(further, "step")[0]["loss"] == pytest.approx(came_to, rel=0.01)
    assert abs(fresh - came_to) > 0.2
    proof = json.loads((tmp_path / "two/proof.json").read_text())
    untuned = logits(load(base), proof["token_ids"][:-1])[-1].log_softmax(-1)[proof["token_ids"][-1]].item()
    assert proof["base_logprob"] == pytest.approx(untuned, abs=0.1)
    token_ids = AutoTokenizer.from_pretrained(adapter)("Count to 5.")["input_ids"]
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "two/adapter")
    torch.testing.assert_close(logits(load(tmp_path / "two/merged"), token_ids), logits(adapted, token_ids))


@pytest.mark.parametrize("type", ["full", "freeze"])
def test_what_trains_whole_weights_begins_with_the_adapter_in_them(
    train: Run, rows: str, base: Path, tmp_path: Path, type: str
) -> None:
    others = {"validation_rows": rows, "validation": {"dataset": "ds_others"}}
    came_to = of_type(train(out="one", hyperparameters={"epochs": 2}, **others), "validation")[-1]["loss"]
    changes = {"method": {"type": type}, "deploy": {"mode": "merged"}}
    further = train(out="two", adapter=str(tmp_path / "one/adapter"), hyperparameters={"batch_size": 42}, **changes)
    assert of_type(further, "step")[0]["loss"] == pytest.approx(came_to, rel=0.01)
    proof = json.loads((tmp_path / "two/proof.json").read_text())
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "one/adapter")
    untuned = logits(adapted, proof["token_ids"][:-1])[-1].log_softmax(-1)[proof["token_ids"][-1]].item()
    assert proof["base_logprob"] == pytest.approx(untuned, abs=0.1)


def test_an_adapter_of_another_rank_cannot_go_on(train: Run, tmp_path: Path) -> None:
    train(out="one", hyperparameters={"max_steps": 1})
    with pytest.raises(Failure, match="another rank") as caught:
        train(out="two", adapter=str(tmp_path / "one/adapter"), method={"rank": 4})
    assert caught.value.code == "model_unreadable"


def test_a_deterministic_run_says_so_and_an_ordinary_one_takes_it_back(train: Run, tmp_path: Path) -> None:
    for out, wanted in (("one", True), ("two", False)):
        train(out=out, hyperparameters={"max_steps": 1, "deterministic": wanted})
        assert torch.are_deterministic_algorithms_enabled() is wanted
        manifest = json.loads((tmp_path / out / "manifest.json").read_text())
        assert manifest["made_with"]["deterministic"] is wanted


def test_the_manifest_says_what_made_the_adapter(train: Run, tmp_path: Path) -> None:
    train(provenance={"dataset_sha256": "ab"}, hyperparameters={"max_steps": 2})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["provenance"] == {"dataset_sha256": "ab"}
    assert manifest["spec"]["method"] == {
        "type": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": "all-linear", "plus": None, "variant": None
    }  # fmt: skip
    assert manifest["made_with"]["torch"] == torch.__version__
    assert manifest["made_with"]["threads"] == 1
    assert manifest["result"]["steps"] == 2
    assert manifest["stop_token_ids"] == [2]


def test_all_linear_means_every_linear_layer_but_the_head(train: Run, base: Path, tmp_path: Path) -> None:
    train(hyperparameters={"max_steps": 1})
    weights = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    adapted = {name.split(".")[-3] for name in weights}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_an_unknown_target_module_is_named(train: Run) -> None:
    with pytest.raises(Failure, match=r"no layer is called w_q; there are .*'q_proj'"):
        train(method={"target_modules": ["q_proj", "w_q"]})


def test_long_rows_are_cut_and_counted_and_rows_without_loss_dropped(train: Run, tmp_path: Path) -> None:
    events = train(
        rows=write_rows(tmp_path / "some.parquet", some_rows()),
        hyperparameters={"max_length": 64},
        check={"max_cut_share": 0.46},
    )
    [started] = of_type(events, "started")
    assert (started["rows"], started["cut_rows"], started["cut_ends"], started["dropped_rows"]) == (7, 6, 5, 4)
    assert 0 < started["tokens_lost"] < 5 * 200
    cut, dropped = (warning["message"] for warning in of_type(events, "warning"))
    assert cut.startswith("6 rows were longer than max_length (64 tokens)")
    assert f"{started['tokens_lost']} tokens in all; in 5 of them" in cut
    assert dropped.startswith("4 ")


def test_a_special_token_that_a_text_is_cut_at_ends_nothing(train: Run, tmp_path: Path) -> None:
    texts = [{"text": "<|im_start|> " * 30}, {"text": "Count to 3."}]
    rows = tmp_path / "texts.parquet"
    pq.write_table(pa.Table.from_pylist(texts, SCHEMAS["text"]), rows)
    events = train(stage="pt", rows=str(rows), hyperparameters={"max_length": 9, "max_steps": 1})
    assert json.loads((tmp_path / "out/manifest.json").read_text())["stop_token_ids"] == [2]
    assert of_type(events, "warning") == []


def some_rows() -> list[list[Message]]:
    """Eleven rows, of which six are longer than 64 tokens: two lose half of their answer, three all of it, one nothing of it."""
    fitting, cut = [chat("a", "b")] * 4, [chat("a", "long " * 90)] * 2
    lost, silent = [chat("long " * 90, "b")] * 3, [chat("a")]
    return [*fitting, *cut, *lost, *silent, chat("a", "b", "long " * 90)]


def test_a_job_whose_answers_lose_their_ends_fails_its_check(train: Run, tmp_path: Path) -> None:
    with pytest.raises(
        Failure, match=r"45\.5% of the rows .*max_length \(64 tokens\).*max_cut_share \(20\.0%\)"
    ) as caught:
        train(rows=write_rows(tmp_path / "some.parquet", some_rows()), hyperparameters={"max_length": 64})
    assert caught.value.code == "data_check_failed"
    assert "check.max_cut_share" in caught.value.hint


def test_rows_of_which_none_has_loss_fail(train: Run, tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        train(rows=write_rows(tmp_path / "none.parquet", [chat("long " * 90, "b")]), hyperparameters={"max_length": 8})
    assert caught.value.code == "no_trainable_rows"


def test_a_loss_that_is_not_finite_fails_at_its_step(train: Run, base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in base.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Failure, match="at step 1") as caught:
        train(base_model=str(broken))
    assert caught.value.code == "loss_not_finite"
    assert "learning_rate" in caught.value.hint


def test_a_folder_without_a_model_is_unreadable(train: Run, tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        train(base_model=str(tmp_path))
    assert caught.value.code == "model_unreadable"
