"""What answers are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.datasets.canonical import SCHEMAS
from app.jobs.hyperparameters import Reinforcement
from app.jobs.spec import RewardModel
from tests.trainer.conftest import Run, chat
from worker.trainer.data.render import Template, plan
from worker.trainer.failures import Failure
from worker.trainer.stages.rewards import Answer, judge_by

CASES: list[tuple[Any, str | None, str, float]] = [
    ("exact_match", "yes", " yes\n", 1),
    ("exact_match", "yes", "yes.", 0),
    ("number_match", "so 3 and 1,200.50", "It is 1200.5", 1),
    ("number_match", "so 3 and 1,200.50", "1200.5 or 3", 0),
    ("number_match", "-4", "minus: -4.0", 1),
    ("number_match", "none", "none", 0),
    ("json_valid", None, '{"a": [1]}', 1),
    ("json_valid", None, "7", 0),
    ("json_valid", None, '{"a": ', 0),
    ("json_valid", None, "[" * 100_000, 0),
    ({"type": "regex", "pattern": r"^\d+$"}, None, "12", 1),
    ({"type": "regex", "pattern": r"^\d+$"}, None, "a12", 0),
    ({"type": "length", "min": 4, "max": 10}, None, "ab", 0.5),
    ({"type": "length", "min": 4, "max": 10}, None, "a" * 10, 1),
    ({"type": "length", "min": 4, "max": 10}, None, "a" * 15, 0.5),
    ({"type": "length", "min": 4, "max": 10}, None, "a" * 99, 0),
    ([{"type": "json_valid", "weight": 3}, {"type": "length", "max": 1, "weight": -1}], None, "[]", 3),
]


@pytest.mark.parametrize(("reward", "reference", "text", "worth"), CASES)
def test_an_answer_is_worth(reward: Any, reference: str | None, text: str, worth: float) -> None:
    settings = Reinforcement.model_validate({"reward": reward})
    row = {"messages": chat("?"), "reference": reference, "tools": None}
    assert judge_by(settings.reward, {})([Answer(row, text)]) == [pytest.approx(worth)]


def test_a_reward_model_s_score_counts_as_it_scores_the_conversation(train: Run, rows_of: Any, tmp_path: Path) -> None:
    train(stage="rm", rows=rows_of("preference"), hyperparameters={"max_steps": 2})
    folder = tmp_path / "out/merged"
    settings = Reinforcement.model_validate({"reward": {"type": "model", "model": "model_1", "weight": 2}})
    judge = judge_by(settings.reward, {"model_1": RewardModel(folder=str(folder), chat_template=None, own_code=False)})
    row = {"messages": chat("Count to 3."), "reference": None, "tools": None}
    texts = ["It is 3.", "No, and that at some length."]
    found = judge([Answer(row, text) for text in texts])
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, score in zip(texts, found, strict=True):
        [whole] = plan(Template(tokenizer), chat("Count to 3.", text), None)
        with torch.no_grad():
            expected = model(**tokenizer(whole.text, add_special_tokens=False, return_tensors="pt")).logits.item()
        assert score == pytest.approx(2 * expected, abs=0.1)


def test_prompts_without_a_reference_are_refused_where_one_is_compared(
    train: Run, rows_of: Any, tmp_path: Path
) -> None:
    path = tmp_path / "without.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": chat("a")}, {"messages": chat("b")}], SCHEMAS["prompts"]), path)
    with pytest.raises(Failure, match="2 of 2 prompts have no reference"):
        train(stage="rl", rows=str(path), hyperparameters={"max_new_tokens": 8})


def test_a_prompt_that_leaves_no_room_for_an_answer_is_dropped_not_cut(train: Run, rows_of: Any) -> None:
    events = train(
        stage="rl", rows=rows_of("prompts"),
        hyperparameters={"max_length": 21, "max_new_tokens": 4, "max_steps": 1, "reward": "json_valid"},
    )  # fmt: skip
    started = next(event for event in events if event["type"] == "started")
    assert 0 < started["dropped_rows"] < 40
    assert started["rows"] == 40 - started["dropped_rows"]
    assert started["cut_rows"] == 0
