"""The scorecard: base beside fine-tune on the same rows, at no one's cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationMixin

from app.jobs.hyperparameters import Supervised
from tests.trainer.conftest import Run, chat, write_rows
from tests.trainer.memory import limit
from tests.trainer.rows_of_the_table import RL
from tests.trainer.test_run import of_type
from worker.trainer import answering, scorecard
from worker.trainer.data.rows import read_rows
from worker.trainer.micro_batches import MicroBatches

ON = {"scorecard": True}
EMPTY = {"loss", "accuracy", "reward_accuracy", "stop_rate", "repetition_rate", "text_loss"}


def card_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    (card,) = of_type(events, "scorecard")
    return card


def missing(side: dict[str, Any]) -> set[str]:
    return {name for name, value in side.items() if value is None}


def up_to(tokens: int) -> MicroBatches:
    return MicroBatches(tokens, lambda *_, **__: None)


def asked_of(tokenizer: Any, rows: str, held_out: bool = True) -> scorecard.Asked:
    items = [item for row in read_rows(rows, "chat", tokenizer, 2048).items_by_row for item in row]
    validation = items if held_out else []
    settings, end = Supervised(), [tokenizer.eos_token_id]
    made = scorecard.choose("sft", settings, items, validation, validation, tokenizer, end, tokenizer.pad_token_id)
    assert made is not None
    return made


def test_what_was_learned_is_told_beside_what_was_there(train: Run, tmp_path: Path) -> None:
    """It learns one answer, which is the right one to three of four others."""
    rows = write_rows(tmp_path / "one.parquet", [chat(f"Count to {i}.", "Done.") for i in range(40)])
    mixed = [chat(f"Count to {i}.", "No." if i % 4 == 0 else "Done.") for i in range(40)]
    others = {"validation_rows": write_rows(tmp_path / "others.parquet", mixed), "validation": {"dataset": "ds_others"}}
    events = train(rows=rows, check=ON, hyperparameters={"epochs": 4}, **others)
    card = card_of(events)
    base, tuned = card["base"], card["tuned"]
    assert tuned["loss"] == round(of_type(events, "validation")[-1]["loss"], 4) < 0.5 * base["loss"]
    assert base["accuracy"] == 0
    assert tuned["accuracy"] == 0.75
    assert base["stop_rate"] < tuned["stop_rate"] == 1
    assert missing(tuned) == missing(base) == {"reward_accuracy"}
    assert base["text_loss"] > 0
    assert (card["rows"], card["prompts"], card["new_tokens"]) == (40, 40, 32)
    assert [event["phase"] for event in of_type(events, "phase")] == ["loading", "measuring", "training", "measuring"]
    told = {name: value for name, value in card.items() if name != "type"}
    assert json.loads((tmp_path / "out/manifest.json").read_text())["scorecard"] == told


def test_it_changes_nothing(train: Run, tmp_path: Path) -> None:
    changes = {"method": {"dropout": 0.1}, "validation": {"fraction": 0.1}}
    for out, wanted in (("with", True), ("without", False)):
        events = train(out=out, check={"scorecard": wanted}, **changes)
        assert len(of_type(events, "scorecard")) == wanted
    one, two = (tmp_path / out / "adapter/adapter_model.safetensors" for out in ("with", "without"))
    assert one.read_bytes() == two.read_bytes()


def test_it_draws_nothing_at_random_and_leaves_the_model_as_it_was(tokenizer: Any, rows: str, base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    model.generation_config.repetition_penalty = 5.0
    asked, before, own = asked_of(tokenizer, rows), torch.get_rng_state(), model.generation_config
    first = scorecard.look(model, asked, up_to(4096))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.generation_config is own
    assert model.training
    own.repetition_penalty = None
    assert scorecard.look(model, asked, up_to(4096)) == first  # what the model was given for chats is not asked for


def test_prompts_that_are_answered_together_are_answered_as_alone(
    tokenizer: Any, rows: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bfloat16 what this random model finds likeliest may differ with the shape of a batch.
    monkeypatch.setattr(answering, "autocast", lambda device: nullcontext())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    asked = asked_of(tokenizer, rows)
    together, alone = (scorecard._answers(model, asked, up_to(most)) for most in (4096, 1))
    assert together == alone
    assert len({len(prompt.asked) for prompt in asked.prompts}) > 3


def test_where_memory_runs_out_less_is_measured_at_a_time(
    train: Run, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"rows": rows, "check": ON, "validation": {"fraction": 0.5}, "hyperparameters": {"max_steps": 1}}
    whole = card_of(train(**changes))
    generate = GenerationMixin.generate

    def few(model: Any, input_ids: torch.Tensor, **further: Any) -> Any:
        found = generate(model, input_ids=input_ids, **further)
        if len(input_ids) > 8:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory")
        return found

    monkeypatch.setattr(GenerationMixin, "generate", few)
    limit(monkeypatch, scorecard._TEXT_TOKENS)
    events = train(out="small", **changes)
    said = [each["message"] for each in of_type(events, "warning")]
    assert said
    assert {each[:27] for each in said} == {"Memory ran out in measuring"}
    small = card_of(events)
    for side in ("base", "tuned"):
        assert small[side]["loss"] == pytest.approx(whole[side]["loss"], rel=0.02)
    assert small["prompts"] == whole["prompts"] > 8


def test_a_model_with_routers_answers_too(train: Run) -> None:
    card = card_of(train(method={"type": "mod", "capacity": 0.5}, check=ON, hyperparameters={"max_steps": 1}))
    assert card["tuned"]["stop_rate"] is not None


def test_without_held_out_rows_there_is_no_loss_of_them_and_nothing_is_right(train: Run) -> None:
    card = card_of(train(check=ON, hyperparameters={"max_steps": 1}))
    assert missing(card["tuned"]) == {"loss", "accuracy", "reward_accuracy"}
    assert (card["rows"], card["prompts"]) == (0, 42)


def test_long_answers_are_not_compared_to_the_letter(train: Run, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "long.parquet", [chat(f"Count to {i}.", "one and " * 60) for i in range(20)])
    card = card_of(train(rows=rows, check=ON, validation={"fraction": 0.3}, hyperparameters={"max_steps": 1}))
    assert missing(card["tuned"]) == {"accuracy", "reward_accuracy"}
    assert card["new_tokens"] == 128


@pytest.mark.parametrize(
    ("stage", "kind", "measured"),
    [
        ("pt", "text", {"loss", "text_loss"}),
        ("rm", "preference", {"loss", "reward_accuracy"}),
        ("dpo", "preference", {"loss", "stop_rate", "repetition_rate", "text_loss"}),
        ("kto", "labels", {"loss", "stop_rate", "repetition_rate", "text_loss"}),
        ("rl", "prompts", {"stop_rate", "repetition_rate", "text_loss"}),
    ],
)
def test_of_other_stages_only_what_makes_sense_is_measured(
    train: Run, rows_of: Callable[[str], str], stage: str, kind: str, measured: set[str]
) -> None:
    settings = {"max_steps": 2} | (RL if stage == "rl" else {})
    changes = {"check": ON, "validation": {"fraction": 0.2}, "hyperparameters": settings}
    card = card_of(train(stage=stage, rows=rows_of(kind), **changes))
    for side in ("base", "tuned"):
        assert EMPTY - missing(card[side]) == measured


def test_a_reward_model_without_held_out_rows_has_none(train: Run, rows_of: Callable[[str], str]) -> None:
    events = train(stage="rm", rows=rows_of("preference"), check=ON, hyperparameters={"max_steps": 1})
    assert not of_type(events, "scorecard")


def test_many_and_long_rows_are_bounded_in_tokens(tokenizer: Any, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "many.parquet", [chat("word " * (i % 700), "yes") for i in range(700)])
    asked = asked_of(tokenizer, rows)
    assert 0 < sum(item.length for item in asked.rows) <= 32_768
    assert 1 < sum(len(prompt.asked) + 128 for prompt in asked.prompts) <= 32_768
    assert len(asked.prompts) <= 64
    assert len(set(map(id, asked.rows))) == len(asked.rows)
    long = write_rows(tmp_path / "long.parquet", [chat("word " * 800, "yes") for _ in range(40)])
    assert 10 < len(asked_of(tokenizer, long).prompts) < 40


@pytest.mark.parametrize(
    ("answer", "repeats"),
    [
        ([1, 2, 3, 4] * 4, True),
        ([1, 2, 3, 4] * 3, False),
        ([7] * 7, True),
        ([7] * 6, False),
        (list(range(99)), False),
        ([], False),
    ],
)
def test_an_answer_repeats_itself_where_four_tokens_come_more_than_three_times(
    answer: list[int], repeats: bool
) -> None:
    assert scorecard._repeats(answer) is repeats


def test_only_the_last_turn_is_asked_for_and_one_without_its_end_is_not(tokenizer: Any, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "turns.parquet", [chat("a", "b", "c", "d e")])
    (prompt,) = asked_of(tokenizer, rows).prompts
    assert tokenizer.decode(prompt.answer).strip() == "d e<|im_end|>"
    assert tokenizer.decode(prompt.asked).count("<|im_end|>") == 3
    assert np.array_equal(prompt.asked[-1:], tokenizer("<|im_start|>assistant\n")["input_ids"][-1:])
    whole = len(prompt.asked) + len(prompt.answer)
    (item,) = read_rows(rows, "chat", tokenizer, whole - 1).items_by_row[0]
    assert scorecard._last_answer(item.examples[0], [tokenizer.eos_token_id]) is None


METHODS: dict[str, dict[str, Any]] = {
    "dora": {"method": {"variant": "dora"}},
    "pissa": {"method": {"variant": "pissa"}},
    "qlora": {"method": {"type": "qlora"}},
    "full": {"method": {"type": "full"}},
    "gradient checkpointing": {"hyperparameters": {"gradient_checkpointing": True}},
}


@pytest.mark.parametrize("method", METHODS)
def test_by_every_method_the_base_is_the_base(train: Run, method: str) -> None:
    changes = METHODS[method]
    settings = {"max_steps": 2} | changes.get("hyperparameters", {})
    card = card_of(train(check=ON, validation={"fraction": 0.1}, **changes | {"hyperparameters": settings}))
    plain = card_of(train(out="plain", check=ON, validation={"fraction": 0.1}, hyperparameters={"max_steps": 1}))
    near = 0.1 if method == "qlora" else 0.02  # whose base is rounded
    assert card["base"]["loss"] == pytest.approx(plain["base"]["loss"], rel=near)
    assert card["base"]["text_loss"] == pytest.approx(plain["base"]["text_loss"], rel=near)
    assert missing(card["tuned"]) == {"reward_accuracy"}
