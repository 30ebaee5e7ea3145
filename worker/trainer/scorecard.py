"""The scorecard: base beside fine-tune on the same rows. Did it learn, does it stop, does it repeat itself, what did it forget?

All of it is bounded in tokens, draws nothing at random and changes nothing in the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from worker.trainer.data.kinds import examples
from worker.trainer.data.render import Example, Plan
from worker.trainer.data.rows import Item
from worker.trainer.general_texts import TEXTS
from worker.trainer.measuring import measured_answers
from worker.trainer.micro_batches import MicroBatches
from worker.trainer.stages import STAGES, Stage
from worker.trainer.stages.texts import Batch
from worker.trainer.validating import measure

_PROMPTS = 64
_PROMPT_TOKENS = 32_768  # of all prompts, and of what may be answered
_NEW_TOKENS = (32, 128)  # of an answer: so many more than the longest that is known, within these
_MORE_TOKENS = 16
_ROW_TOKENS = 32_768  # of the held-out rows
_TEXT_TOKENS = 512  # of a general text
_SHORT = 32  # answers that are longer are hardly ever the same to the letter
# An answer repeats itself where one sequence of so many tokens comes more than so many times.
_GRAM, _TIMES = 4, 3

# Stages that make answers, and those of them whose rows hold the right ones.
_ANSWERING, _RIGHT = ("sft", "dpo", "kto", "rl"), ("sft",)


T = TypeVar("T")


class Prompt(NamedTuple):
    """Token ids of what is asked, and of the answer that the row has, with its end."""

    asked: NDArray[np.int32]
    answer: NDArray[np.int32]


@dataclass(frozen=True)
class Asked:
    """What is asked of base and fine-tune alike. `ends` are the tokens that end an answer."""

    stage: Stage
    settings: Any
    rows: list[Item]
    prompts: list[Prompt]
    texts: list[Item]
    answers_are_right: bool
    new_tokens: int
    ends: list[int]
    pad_id: int
    tokenizer: Any


def choose(
    stage: str,
    settings: Any,
    train: list[Item],
    validation: list[Item],
    held_out: list[Item],
    tokenizer: Any,
    ends: Sequence[int],
    pad_id: int,
) -> Asked | None:
    """Rows of all parts of the files, as many as the bounds allow: `held_out` for the loss (`validation` as the stage prepares
    it), prompts of `validation`, or of `train` where there is none. None where there is nothing to ask."""
    prompts = list[Prompt]()
    if stage in _ANSWERING:
        asked = [(item, prompt) for item in validation or train if (prompt := _prompt(item, ends))]
        prompts = [
            prompt for _, prompt in _spread(asked, _PROMPT_TOKENS, lambda each: len(each[1].asked) + 128, _PROMPTS)
        ]
    longest = max((len(prompt.answer) for prompt in prompts), default=0)
    if stage == "rl":  # whose validation draws answers and judges them, and whose rows have none
        held_out, longest = [], settings.max_new_tokens
    short = median(len(prompt.answer) for prompt in prompts) <= _SHORT if prompts else False
    texts = _texts(tokenizer, min(_TEXT_TOKENS, settings.max_length)) if stage != "rm" else []
    if not (held_out or prompts or texts):
        return None
    return Asked(
        stage=STAGES[stage],
        settings=settings,
        rows=_spread(held_out, _ROW_TOKENS, lambda item: item.length),
        prompts=prompts,
        texts=texts,
        answers_are_right=stage in _RIGHT and bool(validation) and short,
        new_tokens=min(max(longest + _MORE_TOKENS, _NEW_TOKENS[0]), _NEW_TOKENS[1]),
        ends=sorted(ends),
        pad_id=pad_id,
        tokenizer=tokenizer,
    )


def look(model: Any, asked: Asked, micro_batches: MicroBatches) -> dict[str, float | None]:
    """What the model makes of it: a side of the scorecard."""
    mean_loss = partial(_mean_loss, model, asked, micro_batches)
    was_training = model.training
    found: dict[str, float | None] = dict.fromkeys(
        ("loss", "accuracy", "reward_accuracy", "stop_rate", "repetition_rate", "text_loss")
    )
    if asked.rows:
        found["loss"], also = mean_loss(asked.stage, asked.rows)
        if not asked.texts:
            found["reward_accuracy"] = also["reward_accuracy"]
    if asked.texts:
        found["text_loss"], _ = mean_loss(STAGES["pt"], asked.texts)
    if asked.prompts:
        found |= _judged(asked, _answers(model, asked, micro_batches))
    model.train(was_training)
    return {
        name: None if value is None or not math.isfinite(value) else round(value, 4) for name, value in found.items()
    }


def beside(asked: Asked, base: dict[str, float | None], tuned: dict[str, float | None]) -> dict[str, Any]:
    """The scorecard: both sides, and of how much they are."""
    return {
        "base": base,
        "tuned": tuned,
        "rows": len(asked.rows),
        "prompts": len(asked.prompts),
        "new_tokens": asked.new_tokens if asked.prompts else None,
    }


def _prompt(item: Item, ends: Sequence[int]) -> Prompt | None:
    """What is asked of an item; a prompt by itself has no answer."""
    if item.row is not None:
        token_ids = item.examples[0].token_ids
        return Prompt(token_ids, token_ids[:0])
    return _last_answer(item.examples[0], ends)


def _last_answer(example: Example, ends: Sequence[int]) -> Prompt | None:
    """The last turn that is learned, and what is before it; None where it has lost its end, or is all that there is."""
    learned = np.flatnonzero(example.loss_mask)
    breaks = np.flatnonzero(np.diff(learned) > 1)
    first, last = int(learned[breaks[-1] + 1] if len(breaks) else learned[0]), int(learned[-1])
    if first == 0 or int(example.token_ids[last]) not in ends:
        return None
    return Prompt(example.token_ids[:first], example.token_ids[first : last + 1])


def _spread(things: list[T], tokens: int, length: Callable[[T], int], most: int | None = None) -> list[T]:
    """Things from all over the list: as many as `tokens` hold, at least one where there is any, and at most `most`."""
    if not things:
        return []
    mean = sum(map(length, things)) / len(things)
    count = max(1, min(len(things), int(tokens / mean), most or len(things)))
    chosen, left = list[T](), tokens
    for at in np.linspace(0, len(things) - 1, count).astype(int):
        left -= length(things[at])
        if left < 0 and chosen:
            break
        chosen.append(things[at])
    return chosen


def _texts(tokenizer: Any, max_length: int) -> list[Item]:
    made = examples(tokenizer, "text", [Plan(text, []) for text in TEXTS])
    return [Item((Example(each.token_ids[:max_length], each.loss_mask[:max_length]),)) for each in made]


def _mean_loss(
    model: Any, asked: Asked, micro_batches: MicroBatches, stage: Stage, items: list[Item]
) -> tuple[float, dict[str, float]]:
    def run(items: list[Item], work: Callable[[list[Batch]], T]) -> T:
        cut = partial(stage.batches, items, asked.pad_id)
        return micro_batches.fit(model, "in measuring", len(items), cut, work)

    found = measure(model, stage, items, asked.settings, run)
    assert found is not None  # nothing asks it to stop
    return found


def _judged(asked: Asked, given: list[list[int]]) -> dict[str, float | None]:
    stopped = [bool(answer) and answer[-1] in asked.ends for answer in given]
    found: dict[str, float | None] = {
        "stop_rate": sum(stopped) / len(given),
        "repetition_rate": sum(map(_repeats, given)) / len(given),
    }
    if asked.answers_are_right:
        right = sum(
            _text(asked, answer) == _text(asked, prompt.answer.tolist())
            for answer, prompt in zip(given, asked.prompts, strict=True)
        )
        found["accuracy"] = right / len(given)
    return found


def _text(asked: Asked, token_ids: list[int]) -> str:
    """An answer in words, without its end: a text may be made of other tokens than the tokenizer would make of it."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in asked.ends else token_ids
    text: str = asked.tokenizer.decode(kept)
    return text.strip()


def _repeats(answer: list[int]) -> bool:
    grams = Counter(tuple(answer[i : i + _GRAM]) for i in range(len(answer) - _GRAM + 1))
    return max(grams.values(), default=0) > _TIMES


def _answers(model: Any, asked: Asked, micro_batches: MicroBatches) -> list[list[int]]:
    """The likeliest answer to each prompt."""
    prompts = [prompt.asked for prompt in asked.prompts]
    found = measured_answers(
        model, prompts, micro_batches, ends=asked.ends, new_tokens=asked.new_tokens, pad_id=asked.pad_id
    )
    return [answer.tolist() for answer in found]
