"""Preferences: the chosen answer is to become likelier than the rejected one.

`sigmoid` is DPO (Rafailov et al., 2023, arXiv:2305.18290), `hinge` SLiC's loss on its ratios (Zhao et al., 2023,
arXiv:2305.10425), `ipo` Azar et al. (2023, arXiv:2310.12036), on means over tokens as TRL has it, `orpo` Hong et al. (2024,
arXiv:2403.07691), `simpo` Meng et al. (2024, arXiv:2405.14734).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import logsigmoid

from app.jobs.hyperparameters import Preference
from worker.trainer.data.rows import Item
from worker.trainer.stages import texts
from worker.trainer.stages.texts import Batch

# The first half of a batch's texts are the chosen ones, the second the rejected ones of the same pairs.
WITHOUT_REFERENCE = ("orpo", "simpo")


def needs_reference(settings: Preference) -> bool:
    """Whether the loss compares with the model as it was."""
    return settings.loss not in WITHOUT_REFERENCE


def batches(items: Sequence[Item], pad_id: int, max_tokens: int) -> list[Batch]:
    """The pairs of a step as micro-batches; what the loss is a mean over are pairs."""
    made = []
    for part in texts.cut(items, max_tokens):
        batch = texts.collate([item.examples[side] for side in (0, 1) for item in part], pad_id)
        batch["count"] = len(part)
        if part[0].reference:
            batch["reference"] = torch.tensor([item.reference[side] for side in (0, 1) for item in part])
        made.append(batch)
    return made


def loss(model: torch.nn.Module, batch: Batch, settings: Preference) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over the pairs, in fp32; measured are how many rewards were the right way round, and by how much."""
    found = texts.log_probabilities(model, batch)
    per_token = found / texts.loss_tokens(batch)
    rewards = per_token if settings.loss in WITHOUT_REFERENCE else found - batch["reference"]
    if settings.loss == "ipo":
        rewards = rewards / texts.loss_tokens(batch)
    chosen, rejected = rewards.chunk(2)
    margin = chosen - rejected
    lost = LOSSES[settings.loss](margin, per_token, settings)
    return lost.sum(), {"reward_accuracy": (margin > 0).sum(), "reward_margin": (settings.beta * margin).sum()}


def _orpo(margin: torch.Tensor, per_token: torch.Tensor, settings: Preference) -> torch.Tensor:
    odds = per_token - torch.log(-torch.expm1(per_token.clamp(max=-1e-6)))
    chosen, rejected = odds.chunk(2)
    return -per_token.chunk(2)[0] - settings.beta * logsigmoid(chosen - rejected)


# (differences of the rewards [P], log-probabilities a token [2P], settings) → losses of the pairs [P]
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, Preference], torch.Tensor]] = {
    "sigmoid": lambda margin, _, settings: -logsigmoid(settings.beta * margin),
    "hinge": lambda margin, _, settings: torch.relu(1 - settings.beta * margin),
    "ipo": lambda margin, _, settings: (margin - 1 / (2 * settings.beta)) ** 2,
    "orpo": _orpo,
    "simpo": lambda margin, _, settings: -logsigmoid(settings.beta * margin - settings.simpo_gamma),
}
