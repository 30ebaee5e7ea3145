"""What an answer is worth in reinforcement learning (`app.jobs.rewards` has the kinds)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import AutoModelForSequenceClassification

from app.jobs.rewards import ByModel, ExactMatch, JsonValid, Length, NumberMatch, Regex, Reward
from app.jobs.spec import RewardModel
from worker.trainer.data.render import Example, Row, Template, render_answered
from worker.trainer.data.tokenizer import load_tokenizer, pad_id
from worker.trainer.failures import unreadable_model
from worker.trainer.precision import autocast
from worker.trainer.stages import texts

# With thousands separators, or without.
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_TEXTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """A text that answers a row of kind prompts."""

    row: Row
    text: str


Judge = Callable[[Sequence[Answer]], list[float]]


def _of_each(worth: Callable[[Answer, Any], float]) -> Callable[[Any], Judge]:
    return lambda reward: lambda answers: [float(worth(answer, reward)) for answer in answers]


def _exact_match(answer: Answer, reward: ExactMatch) -> float:
    return float(answer.text.strip() == answer.row["reference"].strip())


def _number_match(answer: Answer, reward: NumberMatch) -> float:
    found, wanted = (_last_number(text) for text in (answer.text, answer.row["reference"]))
    return found is not None and found == wanted


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _json_valid(answer: Answer, reward: JsonValid) -> float:
    try:
        return isinstance(json.loads(answer.text), dict | list)
    except (ValueError, RecursionError):
        return 0.0


def _regex(answer: Answer, reward: Regex) -> float:
    return re.search(reward.pattern, answer.text) is not None


def _length(answer: Answer, reward: Length) -> float:
    length = len(answer.text)
    if length < reward.min:
        return length / reward.min
    return max(0.0, 1 - max(0, length - reward.max) / reward.max)


_JUDGES: dict[type[Reward], Callable[[Any], Judge]] = {
    ExactMatch: _of_each(_exact_match),
    NumberMatch: _of_each(_number_match),
    JsonValid: _of_each(_json_valid),
    Regex: _of_each(_regex),
    Length: _of_each(_length),
}


def judge_by(rewards: Sequence[Reward], models: dict[str, RewardModel]) -> Judge:
    """The judge of all these rewards: the weighted sum. Loads the reward models. Raises `Failure` (`model_unreadable`)."""
    judges = [
        (each.weight, _by_model(models[each.model]) if isinstance(each, ByModel) else _JUDGES[type(each)](each))
        for each in rewards
    ]

    def judge(answers: Sequence[Answer]) -> list[float]:
        sums = [0.0] * len(answers)
        for weight, worth in judges:
            sums = [total + weight * each for total, each in zip(sums, worth(answers), strict=True)]
        return sums

    return judge


def _by_model(given: RewardModel) -> Judge:
    tokenizer = load_tokenizer(given.folder, given.chat_template, given.own_code)
    template = Template(tokenizer, given.template_arguments)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            given.folder,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=given.own_code,
        )
    except Exception as error:
        raise unreadable_model(given.folder, "weights", error) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def judge(answers: Sequence[Answer]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(answers), _TEXTS_AT_ONCE):
            part = answers[start : start + _TEXTS_AT_ONCE]
            examples = [_whole(template, answer) for answer in part]
            batch = send_to_device(texts.collate(examples, pad_id(tokenizer)), device)
            with autocast(device):
                found += texts.forward(model, batch)[:, 0].float().tolist()
        return found

    return judge


def _whole(template: Template, answer: Answer) -> Example:
    messages = [*answer.row["messages"], {"role": "assistant", "content": answer.text}]
    ids = render_answered(template, messages, answer.row.get("tools"))
    return Example(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_))
