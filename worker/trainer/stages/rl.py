"""Reinforcement learning: answers are drawn, rewarded, and those that did better than others to the same prompt become likelier.

GRPO (Shao et al., 2024, arXiv:2402.03300; the loss a mean over tokens as in DAPO, Yu et al., 2025, arXiv:2503.14476) and RLOO
(Ahmadian et al., 2024, arXiv:2402.14740). A step's answers are drawn by the weights that it then changes, once: so the ratio of
new and old probabilities is 1, and nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from app.jobs.hyperparameters import Reinforcement
from worker.trainer.answering import Tokens, answers
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.stages import texts
from worker.trainer.stages.rewards import Answer, Judge
from worker.trainer.stages.texts import Batch


def batches(items: Sequence[Item], pad_id: int, max_tokens: int) -> list[Batch]:
    """The prompts of a step, which `Rollouts` answers."""
    return [{"items": list(items), "max_tokens": max_tokens}]


@dataclass(frozen=True)
class Rollouts:
    """Draws and judges answers. `initial` are the weights that are trained, as they were, where `beta` asks for them."""

    tokenizer: Any
    pad_id: int
    stop_ids: list[int]
    settings: Reinforcement
    judge: Judge
    initial: dict[str, torch.Tensor]

    @torch.no_grad()
    def begin_step(self, model: Any, made: list[Batch]) -> list[Batch]:
        """The prompts' answers as micro-batches of texts; what the loss is a mean over are answers.

        While the model trains each prompt has `group_size` answers, drawn at `temperature` from torch's global generators; while
        it is validated one, the likeliest tokens, with its reward and nothing to learn.
        """
        [step] = made
        trains, items = model.training, step["items"]
        copies = self.settings.group_size if trains else 1
        with _without_dropout(model):
            examples = self._draw(model, items, copies, step["max_tokens"], sample=trains)
            rewards = self._judge(items, copies, examples)
            if not trains:
                return [{"reward": torch.tensor(rewards), "tokens": 0, "count": len(items)}]
            longest_first = sorted(range(len(examples)), key=lambda at: -len(examples[at].token_ids))
            drawn = [Item((examples[at],)) for at in longest_first]
            device = next(model.parameters()).device
            cut = [
                send_to_device(texts.collate([each.examples[0] for each in part], self.pad_id), device)
                for part in texts.cut(drawn, step["max_tokens"])
            ]
            if self.settings.beta:
                self._compare(model, cut)
        given = torch.tensor(rewards, device=device)[longest_first]
        worth = given.clone()
        if self.settings.algorithm == "rloo" and self.settings.beta:
            worth -= self.settings.beta * torch.cat([_apart(batch) for batch in cut])
        in_groups = torch.empty_like(worth)
        in_groups[longest_first] = worth
        advantages = ADVANTAGES[self.settings.algorithm](in_groups.view(-1, copies)).flatten()[longest_first]
        counts = [len(batch["labels"]) for batch in cut]
        per_token = len(drawn) / sum(int(texts.loss_tokens(batch).sum()) for batch in cut)
        return [
            batch | {"advantage": advantage, "reward": reward, "count": count, "per_token": per_token}
            for batch, advantage, reward, count in zip(
                cut, torch.split(advantages, counts), torch.split(given, counts), counts, strict=True
            )
        ]

    def _draw(self, model: Any, items: list[Item], copies: int, max_tokens: int, sample: bool) -> list[Example]:
        """`copies` answers to each prompt, one after the other: the prompt's tokens, and the answer's, which are learned."""
        prompts = [item.examples[0].token_ids for item in items for _ in range(copies)]
        drawn = answers(
            model, prompts, ends=self.stop_ids, new_tokens=self.settings.max_new_tokens, pad_id=self.pad_id,
            micro_batch_tokens=max_tokens, temperature=self.settings.temperature if sample else None,
        )  # fmt: skip
        return [_answered(*each) for each in zip(prompts, drawn, strict=True)]

    def _judge(self, items: list[Item], copies: int, examples: list[Example]) -> list[float]:
        drawn = self.tokenizer.batch_decode(
            [each.token_ids[each.loss_mask].tolist() for each in examples], skip_special_tokens=True
        )
        rows = [item.row for item in items for _ in range(copies)]
        return self.judge([Answer(row, text) for row, text in zip(rows, drawn, strict=True) if row is not None])

    def _compare(self, model: Any, cut: list[Batch]) -> None:
        """Writes into each micro-batch what the model as it was says of the answers' tokens, and for RLOO what it says now."""
        temperature = self.settings.temperature
        with _as_it_was(model, self.initial):
            for batch in cut:
                batch["reference"] = -texts.losses(model, batch, temperature)
        if self.settings.algorithm == "rloo":
            for batch in cut:
                batch["now"] = -texts.losses(model, batch, temperature)


def _answered(prompt: Tokens, answer: Tokens) -> Example:
    mask = np.arange(len(prompt) + len(answer)) >= len(prompt)
    return Example(np.concatenate([prompt, answer]).astype(np.int32), mask)


def loss(model: torch.nn.Module, batch: Batch, settings: Reinforcement) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over the answers, in fp32; measured are their rewards, their length in tokens, and with `beta` how far the model has
    come from what it was, in nats a token. In validation the loss is the reward with its sign changed."""
    reward = batch["reward"].sum()
    if "advantage" not in batch:
        return -reward, {"reward": reward}
    said = -texts.losses(model, batch, settings.temperature)  # [N] tokens, row by row
    row = (batch["labels"] != texts.NO_LOSS).nonzero()[:, 0]
    measured = {"reward": reward, "answer_tokens": texts.loss_tokens(batch).sum()}
    advantage = batch["advantage"]
    if settings.algorithm == "rloo":
        whole = said.new_zeros(len(advantage)).index_add(0, row, said)
        lost = -torch.exp(whole - whole.detach()) * advantage
        if settings.beta:
            measured["kl"] = batch["per_token"] * _apart(batch).sum()
        return lost.sum(), measured
    lost = -advantage[row]
    if settings.beta:
        behind = batch["reference"] - said
        apart = torch.exp(behind) - behind - 1
        lost = lost + settings.beta * apart
        measured["kl"] = batch["per_token"] * apart.detach().sum()
    # The ratio weighs the distance too, whose gradient is unbiased so (DeepSeek-V3.2, 2025, arXiv:2512.02556).
    return batch["per_token"] * (torch.exp(said - said.detach()) * lost).sum(), measured


def _apart(batch: Batch) -> torch.Tensor:
    """How much likelier each answer is now than it was, in nats, [B]."""
    labels = batch["labels"] != texts.NO_LOSS
    apart = batch["now"] - batch["reference"]
    of_each: torch.Tensor = apart.new_zeros(len(labels)).index_add(0, labels.nonzero()[:, 0], apart)
    return of_each


def _grpo(rewards: torch.Tensor) -> torch.Tensor:
    apart = rewards - rewards.mean(dim=1, keepdim=True)
    return apart / (rewards.std(dim=1, keepdim=True) + 1e-4)


def _rloo(rewards: torch.Tensor) -> torch.Tensor:
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


# Rewards [prompts, answers] → how much better each answer did than the others to its prompt.
ADVANTAGES = {"grpo": _grpo, "rloo": _rloo}


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    trains = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(trains)


@contextmanager
def _as_it_was(model: Any, initial: dict[str, torch.Tensor]) -> Iterator[None]:
    """Give the model its initial weights until the block ends."""
    trained = {name: parameter for name, parameter in model.named_parameters() if name in initial}
    now = {name: parameter.data for name, parameter in trained.items()}

    def swap(weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in trained.items():
            parameter.data = weights[name]
        # Autocast keeps 16-bit copies by parameter. It does not see that the data behind a parameter changed.
        torch.clear_autocast_cache()

    try:
        swap(initial)
        yield
    finally:
        swap(now)
