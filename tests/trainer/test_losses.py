"""Losses and their gradients, against TRL's on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from app.jobs.hyperparameters import Kto, Preference, Reinforcement
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.micro_batches import MicroBatches
from worker.trainer.precision import autocast, compute_in
from worker.trainer.reference import with_reference
from worker.trainer.stages import STAGES, kto, rl, texts

LENGTHS = ((9, 5, 8), (4, 7, 3), (14, 2, 6), (6, 6, 1), (3, 4, 9))  # of prompt, chosen and rejected answer
CHAT = [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def ids(random: np.random.Generator, length: int) -> list[int]:
    return [int(token) for token in random.integers(5, 500, length)]


def example(prompt: list[int], answer: list[int]) -> Example:
    mask = np.arange(len(prompt) + len(answer)) >= len(prompt)
    return Example(np.array(prompt + answer, dtype=np.int32), mask)


ROWS = [[ids(np.random.default_rng([row, part]), length) for part, length in enumerate(lengths)]
        for row, lengths in enumerate(LENGTHS)]  # fmt: skip
PAIRS = [Item((example(prompt, chosen), example(prompt, rejected))) for prompt, chosen, rejected in ROWS]


@pytest.fixture(autouse=True)
def in_fp32() -> Iterator[None]:
    """Also where this machine is quick in bfloat16: theirs are computed so."""
    compute_in("fp32")
    yield
    compute_in("auto")


@pytest.fixture
def model(base: Path) -> Any:
    """The model that is trained: the base, moved a little away from it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture
def untrained(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


def plain(out: Path, **options: Any) -> dict[str, Any]:
    return {"output_dir": str(out), "use_cpu": True, "report_to": "none", "bf16": False,
            "gradient_checkpointing": False, **options}  # fmt: skip


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(model: Any, ours: torch.Tensor, theirs: Callable[[Any], torch.Tensor]) -> None:
    """`theirs` is asked of a copy: TRL changes the forward of the model that it is given."""
    copied = deepcopy(model)
    own, oracle = gradients(model, ours), theirs(copied)
    torch.testing.assert_close(ours, oracle, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own, gradients(copied, oracle), rtol=1e-4, atol=1e-4)


def step_loss(stage: str, model: Any, items: list[Item], settings: Any, max_tokens: int = 60) -> torch.Tensor:
    """A step's loss, of several micro-batches."""
    made = STAGES[stage].batches(items, 0, max_tokens)
    assert len(made) > 1
    made = STAGES[stage].begin_step(model, made)
    count = sum(batch["count"] for batch in made)
    return torch.stack([STAGES[stage].loss(model, batch, settings)[0] for batch in made]).sum() / count


def test_the_loss_of_answers_is_trl_s(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    answers = [each for item in PAIRS for each in item.examples]
    batch = [
        {"input_ids": each.token_ids, "labels": np.where(each.loss_mask, each.token_ids, -100).astype(np.int64)}
        for each in answers
    ]

    def theirs(copied: Any) -> torch.Tensor:
        some = Dataset.from_list([{"prompt": "a", "completion": "b"}])
        oracle = SFTTrainer(copied, SFTConfig(**plain(tmp_path)), train_dataset=some, processing_class=tokenizer)
        found: torch.Tensor = oracle.compute_loss(oracle.model, oracle.data_collator(batch))
        return found

    assert_same(model, step_loss("sft", model, [Item((each,)) for each in answers], None), theirs)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_losses_of_preferences_are_trl_s(model: Any, untrained: Any, tokenizer: Any, tmp_path: Path, loss: str) -> None:
    settings = Preference.model_validate({"loss": loss, "beta": 0.3})
    items = with_reference(untrained, PAIRS, 0, MicroBatches(60, pytest.fail))
    batch = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in ROWS]

    def theirs(copied: Any) -> torch.Tensor:
        args = DPOConfig(**plain(tmp_path, loss_type=[loss], beta=0.3))
        oracle = DPOTrainer(copied, untrained, args, train_dataset=Dataset.from_list(CHAT), processing_class=tokenizer)
        found: torch.Tensor = oracle._compute_loss(oracle.model, oracle.data_collator(batch), False)
        return found

    assert_same(model, step_loss("dpo", model, items, settings), theirs)


def test_simpo_and_orpo_are_trl_s(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = Dataset.from_list(CHAT)
    chosen_and_rejected = texts.collate([item.examples[side] for side in (0, 1) for item in PAIRS], 0)

    def per_token(copied: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = texts.log_probabilities(copied, chosen_and_rejected) / texts.loss_tokens(chosen_and_rejected)
        chosen, rejected = found.chunk(2)
        return chosen, rejected

    def simpo(copied: Any) -> torch.Tensor:
        args = CPOConfig(**plain(tmp_path, loss_type="simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0.0))
        oracle = CPOTrainer(copied, args, train_dataset=rows, processing_class=tokenizer)
        losses: torch.Tensor = oracle.cpo_loss(*per_token(copied))[0]
        return losses.mean()

    def orpo(copied: Any) -> torch.Tensor:
        args = ORPOConfig(**plain(tmp_path, beta=0.3))
        oracle = ORPOTrainer(copied, args, train_dataset=rows, processing_class=tokenizer)
        chosen, rejected = per_token(copied)
        ratios: torch.Tensor = oracle.odds_ratio_loss(chosen, rejected)[0]
        return (-chosen - ratios).mean()

    settings = Preference.model_validate({"loss": "simpo", "beta": 2.0, "simpo_gamma": 0.7})
    assert_same(model, step_loss("dpo", model, PAIRS, settings), simpo)
    settings = Preference.model_validate({"loss": "orpo", "beta": 0.3})
    assert_same(model, step_loss("dpo", model, PAIRS, settings), orpo)


def test_the_loss_of_labels_is_trl_s(model: Any, untrained: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = Kto.model_validate({"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5})
    # Of one length, so that no mismatched pair is cut, which TRL does not do.
    rows = [(prompt[:3], answer[:2] * 2, bool(i % 2)) for i, (prompt, answer, _) in enumerate(ROWS)]
    items = [Item((example(prompt, answer),), good=good) for prompt, answer, good in rows]
    items = with_reference(untrained, kto.pair_up(items), 0, MicroBatches(60, pytest.fail))
    batch = [
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": rows[i - 1][1], "label": good}
        for i, (prompt, answer, good) in enumerate(rows)
    ]

    def theirs(copied: Any) -> torch.Tensor:
        args = KTOConfig(**plain(
            tmp_path, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5, per_device_train_batch_size=2,
            train_sampling_strategy="sequential",
        ))  # fmt: skip
        some = Dataset.from_list([{"prompt": "a", "completion": "b", "label": i > 0} for i in range(2)])
        oracle = KTOTrainer(copied, untrained, args, train_dataset=some, processing_class=tokenizer)
        found: torch.Tensor = oracle._compute_loss(oracle.model, oracle.data_collator(batch), False)
        return found

    assert_same(model, step_loss("kto", model, items, settings, max_tokens=30), theirs)


def test_the_loss_of_reward_models_is_trl_s(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    scorer = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    batch = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in ROWS]

    def theirs(copied: Any) -> torch.Tensor:
        args = RewardConfig(**plain(tmp_path, center_rewards_coefficient=None))
        oracle = RewardTrainer(copied, args, train_dataset=Dataset.from_list(CHAT), processing_class=tokenizer)
        found: torch.Tensor = oracle.compute_loss(oracle.model, oracle.data_collator(batch))
        return found

    assert_same(scorer, step_loss("rm", scorer, PAIRS, None), theirs)


# Two answers to each prompt, and what they are rewarded with.
ANSWERS = [[example(prompt, each) for each in answers] for prompt, *answers in ROWS]
WORTH = torch.tensor([[1.0, 0.0], [0.2, 0.7], [1.0, 1.0], [0.0, 0.5], [0.1, 0.9]])


def rollouts(monkeypatch: pytest.MonkeyPatch, settings: Reinforcement, untrained: Any) -> rl.Rollouts:
    """What would draw and judge just these answers."""
    monkeypatch.setattr(rl.Rollouts, "_draw", lambda *_, **__: [each for answers in ANSWERS for each in answers])
    monkeypatch.setattr(rl.Rollouts, "_judge", lambda *_: WORTH.flatten().tolist())
    return rl.Rollouts(None, 0, [], settings, lambda _: [], dict(untrained.named_parameters()))


def padded(sequences: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    side = "left" if left else "right"
    made = [torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in part], True, 0.0, side)
            for part in (sequences, [[1] * len(each) for each in sequences])]  # fmt: skip
    return made[0].long(), made[1].long()


def said(
    model: Any, prompts: list[list[int]], answers: list[list[int]], width: int, temperature: float
) -> torch.Tensor:
    """Log-probabilities of the answers' tokens, [answers, width]; row by row, without padding."""
    found = torch.zeros(len(answers), width)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float() / temperature
        found[row, : len(answer)] = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    return found


@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.6), (0.3, 0.6)])
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_losses_of_drawn_answers_are_trl_s(
    model: Any,
    untrained: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    beta: float,
    temperature: float,
) -> None:
    both = {"beta": beta, "temperature": temperature}
    settings = Reinforcement.model_validate({"algorithm": algorithm, "group_size": 2, "batch_size": 10, **both})
    prompts = [prompt for prompt, *_ in ROWS for _ in range(2)]
    answers = [answer for _, *two in ROWS for answer in two]
    prompt_ids, prompt_mask = padded(prompts, left=True)
    completion_ids, completion_mask = padded(answers, left=False)
    given = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": completion_ids,
             "completion_mask": completion_mask, "num_items_in_batch": completion_mask.sum().float()}  # fmt: skip
    options = plain(
        tmp_path,
        **both,
        num_generations=2,
        per_device_train_batch_size=10,
        steps_per_generation=1,
        max_completion_length=9,
    )
    kind, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[algorithm]
    with torch.no_grad():
        width = completion_ids.shape[1]
        was, now = (said(each, prompts, answers, width, temperature) for each in (untrained, model))
    if algorithm == "grpo":
        advantage = (WORTH - WORTH.mean(1, keepdim=True)) / (WORTH.std(1, keepdim=True) + 1e-4)
        given |= {"ref_per_token_logps": was}
    else:
        worth = WORTH - beta * (now - was).sum(1).view(5, 2)
        advantage = worth - worth.flip(1)
        given |= {"old_logps": now.sum(1)}
    given["advantages"] = advantage.flatten()

    def theirs(copied: Any) -> torch.Tensor:
        some = Dataset.from_list([{"prompt": "a"}] * 10)
        oracle = kind(copied, lambda **_: [0.0], config(**options), train_dataset=some, processing_class=tokenizer)
        oracle.current_gradient_accumulation_steps = 1
        oracle.model.train()
        found: torch.Tensor = oracle._compute_loss(oracle.model, given)
        return found

    model.train()
    items = [Item((example(prompt, []),), row={}) for prompt, *_ in ROWS]
    made = rollouts(monkeypatch, settings, untrained).begin_step(model, rl.batches(items, 0, 60))
    assert len(made) > 1
    count = sum(batch["count"] for batch in made)
    ours = torch.stack([rl.loss(model, batch, settings)[0] for batch in made]).sum() / count
    assert_same(model, ours, theirs)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_in_bf16_the_reference_is_what_the_initial_weights_say(
    model: Any, untrained: Any, tokenizer: Any, algorithm: str
) -> None:
    compute_in("bf16")
    settings = Reinforcement.model_validate({"algorithm": algorithm, "group_size": 2, "batch_size": 4, "beta": 0.3})
    initial = dict(untrained.named_parameters())
    rollouts = rl.Rollouts(tokenizer, 0, [], settings, lambda answers: [0.0] * len(answers), initial)
    items = [Item((example(prompt, []),), row={}) for prompt, *_ in ROWS[:2]]
    with autocast(model.device):  # as the loop does: answers are drawn in it before they are compared
        made = rollouts.begin_step(model.train(), rl.batches(items, 0, 60))
    for batch in made:
        with torch.no_grad(), autocast(model.device):
            was, now = (-texts.losses(each, batch) for each in (untrained.eval(), model.eval()))
        torch.testing.assert_close(batch["reference"], was)
        assert (was - now).abs().max() > 0.01
        if algorithm == "rloo":
            torch.testing.assert_close(batch["now"], now)
