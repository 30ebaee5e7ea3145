"""Weights, gradients and optimiser state shared out among a run's processes: each keeps a part, and all of a block's weights are
together only while it is computed (FSDP: Zhao et al., 2023, arXiv:2304.11277; torch's `fully_shard`).

Every forward and backward pass is then one that all processes do at the same time. What is not sharded passes through here as
it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from worker.trainer import ranks
from worker.trainer.base import blocks_of
from worker.trainer.precision import compute_dtype
from worker.trainer.stages.texts import NO_LOSS, Batch
from worker.trainer.stopping import StopSignal


class _Collected:
    """What is saved of a sharded run, whole, on the CPU: weights by their first names, and the optimiser's state."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.optimizer: dict[str, Any] = {}


def shard(model: Any) -> None:
    """Shares out the weights, block by block, and moves them to where they are trained. Its state dict has whole weights, those of
    the last `collect`, and takes whole ones."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (ranks.count(),))
    # Weights are sent in the precision that they are multiplied in; autocast would keep a copy of all of them.
    precision = MixedPrecisionPolicy(compute_dtype(), torch.float32)
    for module in [*blocks_of(model), model]:
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        # Their sum and no mean: a loss is divided by what is counted in all processes. Gloo has plain sums only.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    model.collected = _Collected()
    model.register_state_dict_post_hook(_give_whole)
    model.register_load_state_dict_pre_hook(_take_whole)


def is_sharded(model: Any) -> bool:
    """Whether the model's weights are shared out."""
    return isinstance(model, FSDPModule)


def watch(model: Any, optimizer: Optimizer) -> Optimizer:
    """The optimiser; of a sharded model its state dict becomes whole, as the model's is."""
    if not is_sharded(model):
        return optimizer

    def take_parts(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        parts = {
            number: {name: _part(value, weights[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return state | {"state": parts}

    optimizer.register_state_dict_post_hook(lambda optimizer, state: model.collected.optimizer or state)
    optimizer.register_load_state_dict_pre_hook(take_parts)
    return optimizer


def collect(model: Any, optimizer: Any = None) -> None:
    """Gathers what is about to be saved in the first process. To be called by all; `drop` frees it."""
    if not is_sharded(model):
        return
    weights = {name: _whole(weight.detach()) for name, weight in model.named_parameters()}
    state = tree_map(_whole, optimizer.state_dict()) if optimizer is not None else {}
    if ranks.rank() == 0:
        model.collected.weights, model.collected.optimizer = weights, state


def drop(model: Any) -> None:
    """Frees what was collected."""
    if is_sharded(model):
        model.collected.weights, model.collected.optimizer = {}, {}


def may_leave_off(model: Any, stop: StopSignal) -> bool:
    """Whether a validation may be left by this process at once: a stop is asked, and nobody needs its passes."""
    return stop.requested and not is_sharded(model)


def even(model: Any, made: list[Batch], another: Callable[[], list[Batch]]) -> list[Batch]:
    """As many micro-batches as the process has that has most: with some of which nothing is learned, of the shape of its own or, of
    a process that has none, of `another()`."""
    if not is_sharded(model):
        return made
    missing = max(ranks.gather(len(made))) - len(made)
    if missing == 0:
        return made
    like = (made or another())[-1]
    empty = like | {"labels": torch.full_like(like["labels"], NO_LOSS), "count": 0, "tokens": 0}
    return made + [empty] * missing


def _whole(value: Any) -> Any:
    """A part's whole, in the first process; elsewhere it is let go of."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if ranks.rank() == 0 else None


def _part(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor that is shared out like the other; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    whole = value.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _give_whole(model: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Tied weights stay one tensor, by which whoever writes them sees that they are tied."""
    found: dict[int, torch.Tensor] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) not in found and name in model.collected.weights:
            found[id(weight)] = model.collected.weights[name].to(weight.dtype)
        if name in state and id(weight) in found:
            state[name] = found[id(weight)]


def _take_whole(model: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = _part(state[name], weight)
