"""AdamW with little state: of the linear layers in a model's blocks it keeps the moments of a projected gradient alone.

What `galore` and `apollo` share. All of the state is numbers and tensors, which a checkpoint gives back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch.nn import Linear
from torch.optim import Optimizer

from app.jobs.methods import Apollo, Galore
from worker.trainer.base import blocks_of
from worker.trainer.methods import full

State = dict[str, Any]
# (gradient (long, short), the weight's state, its group, its number in the group) → the projection (rank, short).
Project = Callable[[torch.Tensor, State, State, int], torch.Tensor]
# (gradient (long, short), its projection to (long, rank), AdamW's direction there (long, rank), the projection (rank, short),
# the weight's state, its group) → the direction (long, short).
Enlarge = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, State, State], torch.Tensor]


def prepare(model: Any, config: Galore | Apollo) -> Any:
    """Every weight is trained. Raises `ValueError` where the model has no blocks."""
    blocks_of(model)
    return full.prepare(model, config)


def optimizer(
    model: Any, config: Galore | Apollo, options: dict[str, Any], project: Project, enlarge: Enlarge
) -> LowRank:
    """An optimiser of the model's weights with `options` as torch's AdamW takes them; norms and biases do not decay."""
    layers = [module for module in blocks_of(model).modules() if isinstance(module, Linear)]
    projected = [layer.weight for layer in layers if layer.weight.requires_grad]
    ids = {id(weight) for weight in projected}
    others = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in ids]
    groups = [
        {"params": projected, "seed": torch.initial_seed(), **config.model_dump(exclude={"type"})},
        {"params": [weight for weight in others if weight.ndim > 1]},
        {"params": [weight for weight in others if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    defaults = {name: options[name] for name in ("lr", "betas", "eps", "weight_decay")}
    return LowRank(groups, defaults, project, enlarge, keeps_projection=isinstance(config, Galore))


class LowRank(Optimizer):
    """AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101); the weights of a group with a `rank` are matrices whose gradients
    are projected along their shorter side to it, and the direction found there is enlarged again."""

    def __init__(
        self, groups: list[State], defaults: State, project: Project, enlarge: Enlarge, *, keeps_projection: bool
    ) -> None:
        super().__init__(groups, defaults)
        self.project, self.enlarge, self.keeps_projection = project, enlarge, keeps_projection

    def shapes(self, weight: torch.Tensor, group: State) -> list[tuple[int, ...]]:
        """Those of the tensors that are kept of a weight: both moments, and its projection where that is kept."""
        if "rank" not in group:
            return [tuple(weight.shape)] * 2
        long, short = max(weight.shape), min(weight.shape)
        rank = min(group["rank"], short)
        return [(long, rank), (long, rank), *([(rank, short)] if self.keeps_projection else [])]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes a step by the weights' gradients; a `closure` makes them first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for number, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                state = self.state[weight]
                state.setdefault("step", 0)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                if "rank" in group:
                    direction = self._projected(weight, state, group, number)
                else:
                    direction = _direction(weight.grad, state, group)
                first, second = _corrections(state, group)
                weight.add_(direction, alpha=-group["lr"] * second / first)
                state["step"] += 1
        return loss

    def _projected(self, weight: torch.Tensor, state: State, group: State, number: int) -> torch.Tensor:
        assert weight.grad is not None
        is_wide = weight.shape[0] < weight.shape[1]
        gradient = weight.grad.T if is_wide else weight.grad
        projection = self.project(gradient, state, group, number)
        low = gradient @ projection.T
        direction = _direction(low, state, group)
        enlarged = self.enlarge(gradient, low, direction, projection, state, group)
        return enlarged.T if is_wide else enlarged


def _direction(gradient: torch.Tensor, state: State, group: State) -> torch.Tensor:
    """AdamW's, with the gradient added to the moments, which are not corrected for their beginning at zero."""
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = gradient.new_zeros(gradient.shape), gradient.new_zeros(gradient.shape)
    (beta1, beta2), (_, second) = group["betas"], _corrections(state, group)
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    direction: torch.Tensor = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"] * second)
    return direction


def _corrections(state: State, group: State) -> tuple[float, float]:
    """What the first moment, and the root of the second, are to be divided by."""
    beta1, beta2 = group["betas"]
    return 1 - beta1 ** (state["step"] + 1), math.sqrt(1 - beta2 ** (state["step"] + 1))
