"""GaLore's and APOLLO's steps are the papers', and their state is small."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.jobs.methods import Apollo, Galore
from worker.trainer.base import Base
from worker.trainer.methods import METHODS, full
from worker.trainer.methods.low_rank import LowRank

LR, BETAS, EPS, DECAY, RANK = 0.01, (0.9, 0.999), 1e-8, 0.1, 4
OPTIONS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "fused": True}
# One with more rows than columns, one with more columns than rows, a square one.
PROJECTED = (
    "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.q_proj.weight"
)  # fmt: skip


def load(base: Path) -> Any:
    return full.prepare(full.load_base(Base(str(base)), None), None)


def optimizer_of(model: Any, config: Galore | Apollo) -> LowRank:
    made = METHODS[config.type].optimizer(model, config, OPTIONS)
    assert isinstance(made, LowRank)
    return made


def give_gradients(model: Any, step: int) -> dict[str, Tensor]:
    """Each weight gets the gradients of a step, larger ones each time, which are returned."""
    torch.manual_seed(step)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight) * (1 + step)
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def adam(gradients: list[Tensor]) -> Tensor:
    """The last direction of AdamW, from all gradients so far (Loshchilov & Hutter, 2019, algorithm 2)."""
    first = second = torch.zeros_like(gradients[0])
    for gradient in gradients:
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
    first, second = (moment / (1 - beta ** len(gradients)) for moment, beta in ((first, BETAS[0]), (second, BETAS[1])))
    return first / (second.sqrt() + EPS)


def test_galore_takes_the_steps_of_its_paper_also_with_a_new_projection(base: Path) -> None:
    """Its algorithms 1 and 2; the projection is from the left where a weight has fewer rows than columns."""
    model = load(base)
    optimizer = optimizer_of(model, Galore(rank=RANK, update_interval=2, scale=0.5))
    expected = {name: model.get_parameter(name).detach().clone() for name in PROJECTED}
    low: dict[str, list[Tensor]] = {name: [] for name in PROJECTED}
    projections: dict[str, Tensor] = {}
    for step in range(5):
        gradients = give_gradients(model, step)
        optimizer.step()
        for name, weight in expected.items():
            gradient, from_left = gradients[name], weight.shape[0] < weight.shape[1]
            if step % 2 == 0:  # decomposed the same way round: the signs of singular vectors are anybody's
                tall = gradient.T if from_left else gradient
                projections[name] = torch.linalg.svd(tall, full_matrices=False).Vh[:RANK].T
            p = projections[name]
            low[name].append(p.T @ gradient if from_left else gradient @ p)
            back = p @ adam(low[name]) if from_left else adam(low[name]) @ p.T
            expected[name] = weight * (1 - LR * DECAY) - LR * 0.5 * back
            torch.testing.assert_close(model.get_parameter(name).detach(), expected[name], atol=1e-5, rtol=1e-4)


def test_apollo_scales_the_channels_of_a_gradient_and_limits_how_it_grows(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its algorithm 1, and its limiter of growth, which judges, as its authors' code does, what is not yet corrected for the
    moments' beginning at zero."""
    model = load(base)
    optimizer = optimizer_of(model, Apollo(rank=RANK, update_interval=2, scale=9.0))
    names = {id(weight): name for name, weight in model.named_parameters()}
    in_order = [names[id(weight)] for weight in optimizer.param_groups[0]["params"]]
    expected = {name: model.get_parameter(name).detach().clone() for name in PROJECTED}
    low: dict[str, list[Tensor]] = {name: [] for name in PROJECTED}
    norms: dict[str, Tensor] = {}
    numbers: list[dict[str, Tensor]] = []
    drawn: list[Tensor] = []
    randn = torch.randn

    def noted(*shape: int, **how: Any) -> Tensor:
        drawn.append(randn(*shape, **how))
        return drawn[-1]

    for step in range(5):
        gradients = give_gradients(model, step)
        drawn.clear()
        monkeypatch.setattr(torch, "randn", noted)
        optimizer.step()
        monkeypatch.undo()
        numbers.append(dict(zip(in_order, drawn, strict=True)))
        uncorrected = math.sqrt(1 - BETAS[1] ** (step + 1)) / (1 - BETAS[0] ** (step + 1))
        for name, weight in expected.items():
            gradient, from_left = gradients[name], weight.shape[0] < weight.shape[1]
            p = numbers[step][name] / math.sqrt(RANK)
            low[name].append(p @ gradient if from_left else gradient @ p.T)
            along = 0 if from_left else 1
            factor = adam(low[name]).norm(dim=along, keepdim=True) / low[name][-1].norm(dim=along, keepdim=True)
            scaled = gradient * factor / uncorrected
            if step and scaled.norm() > 1.01 * norms[name]:
                scaled = scaled / scaled.norm() * 1.01 * norms[name]
            norms[name] = scaled.norm()
            expected[name] = weight * (1 - LR * DECAY) - LR * uncorrected * 3.0 * scaled
            torch.testing.assert_close(model.get_parameter(name).detach(), expected[name], atol=1e-5, rtol=1e-4)
    first, *others = PROJECTED
    assert torch.equal(numbers[0][first], numbers[1][first])
    assert not torch.equal(numbers[1][first], numbers[2][first])
    assert not any(torch.equal(numbers[0][first], numbers[0][other]) for other in others)
    assert abs(torch.cat([drawn.flatten() for drawn in numbers[0].values()]).std() - 1) < 0.1


@pytest.mark.parametrize("config", [Galore(rank=RANK), Apollo(rank=RANK)])
def test_embeddings_head_norms_and_biases_are_adamw_s(base: Path, config: Galore | Apollo) -> None:
    ours, plain = load(base), load(base)
    optimizer = optimizer_of(ours, config)
    matrices, vectors = ([p for p in plain.parameters() if (p.ndim > 1) is many] for many in (True, False))
    reference = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], **OPTIONS)
    for step in range(3):
        for model in (ours, plain):
            give_gradients(model, step)
        optimizer.step()
        reference.step()
    others = dict(plain.named_parameters())
    alike = {name for name, weight in ours.named_parameters() if torch.allclose(weight, others[name], atol=1e-6)}
    projected = {f"{name}.weight" for name, module in ours.model.layers.named_modules() if hasattr(module, "weight")
                 and module.weight.ndim == 2}  # fmt: skip
    assert alike == others.keys() - {f"model.layers.{name}" for name in projected}
    assert len(projected) == 2 * 7


@pytest.mark.parametrize(("config", "kept"), [(Galore(rank=RANK), 1), (Apollo(rank=RANK), 0)])
def test_the_state_is_of_low_rank(base: Path, config: Galore | Apollo, kept: int) -> None:
    """Of a weight of m × n, n the shorter side: two moments of m × rank; of GaLore a projection of n × rank beside them."""
    model = load(base)
    optimizer = optimizer_of(model, config)
    give_gradients(model, 0)
    optimizer.step()
    for weight in optimizer.param_groups[0]["params"]:
        held = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor) and value.ndim > 0]
        short, long = sorted(weight.shape)
        shapes = sorted(optimizer.shapes(weight, optimizer.param_groups[0]))
        assert sorted(tuple(value.shape) for value in held) == shapes
        assert sum(value.untyped_storage().nbytes() for value in held) == 4 * RANK * (2 * long + kept * short)
    rest = [weight for group in optimizer.param_groups[1:] for weight in group["params"]]
    assert sum(
        value.numel() for weight in rest for value in optimizer.state[weight].values() if isinstance(value, Tensor)
    ) == (2 * sum(weight.numel() for weight in rest))


@pytest.mark.parametrize("config", [Galore(), Apollo()])
def test_gradients_that_are_not_finite_are_for_the_loop_to_find(base: Path, config: Galore | Apollo) -> None:
    model = load(base)
    optimizer = optimizer_of(model, config)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, torch.nan)
    optimizer.step()


def test_a_rank_above_the_shorter_side_is_that(base: Path) -> None:
    model = load(base)
    for config in (Galore(rank=512), Apollo(rank=512)):
        optimizer = optimizer_of(model, config)
        give_gradients(model, 0)
        optimizer.step()
        for weight in optimizer.param_groups[0]["params"]:
            assert sorted(optimizer.state[weight]["exp_avg"].shape) == sorted(weight.shape)
