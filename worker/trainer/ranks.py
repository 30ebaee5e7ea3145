"""The processes of a run on several GPUs, and what they tell each other.

Each has a rank, from 0, and a copy of the model; all do the same steps, each on its share of a step's rows. Whatever they agree on
goes through here, and each must call the same functions in the same order. In a run of one process nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from worker.trainer.failures import Gone, of_the_machine
from worker.trainer.others import meeting

T = TypeVar("T")

# For as long one waits for the others, which may be writing a large checkpoint. One that died is noticed at once, otherwise.
_PATIENCE = timedelta(hours=12)
_BUCKET = 2**24  # gradients are summed in parts of about so many numbers


class OutOfMemoryElsewhere(MemoryError):
    """Memory ran out in another process: this one is to do as that one does."""


class _RanOut:
    """What a process says in the place of a value when its memory ran out."""


def join(own_rank: int, processes: int, out: Path) -> None:
    """Meets the others. Returns when all are there. Nothing of it is heard beyond this machine."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    where = f"file://{meeting(out).resolve()}"
    meet = {"init_method": where, "rank": own_rank, "world_size": processes, "timeout": _PATIENCE}
    _wait(dist.init_process_group, backend, **meet)


def leave() -> bool:
    """To be called when training is done; from then on this process is alone. Whether it is the first one."""
    is_first = rank() == 0
    if count() > 1:
        gather(None)
        dist.destroy_process_group()
    return is_first


def rank() -> int:
    """The number of this process: the first one speaks and writes for all."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Everybody's values, by rank. Raises `OutOfMemoryElsewhere`, and `Gone`."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    _wait(dist.all_gather_object, found, value)
    if any(isinstance(each, _RanOut) for each in found):
        raise OutOfMemoryElsewhere("another process ran out of memory")
    return found


def tell_out_of_memory() -> None:
    """Makes the `gather` that the others wait in, or will come to, raise `OutOfMemoryElsewhere` there."""
    try:
        gather(_RanOut())
    except OutOfMemoryElsewhere:
        return


def total(value: Any) -> Any:
    """The sum of everybody's numbers; of one process its own value as it is."""
    return value if count() == 1 else sum(gather(float(value)))


def share(items: Sequence[T], length: Callable[[T], int]) -> list[T]:
    """This process's part of the items: they are dealt out in turns, the longest first."""
    if count() == 1:
        return list(items)
    return sorted(items, key=lambda item: -length(item))[rank() :: count()]


def make_same(model: torch.nn.Module) -> None:
    """Gives the weights that are trained what they have in the first process. They came from the same seed and files; but a sum
    that came out otherwise there would never be made good."""
    if count() > 1:
        for weight in _trained(model):
            _wait(dist.broadcast, weight.data, 0)


def sum_gradients(model: torch.nn.Module) -> None:
    """Makes each weight's gradient the sum over all processes. One that none of them has stays away."""
    if count() == 1 or not (weights := _trained(model)):
        return
    whose = zip(*gather([weight.grad is not None for weight in weights]), strict=True)
    learned = [weight for weight, has in zip(weights, whose, strict=True) if any(has)]
    for weight in learned:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    for gradients in _buckets([weight.grad for weight in learned]):
        if len(gradients) == 1 and gradients[0].is_contiguous():  # it may be large: no copy of it
            _wait(dist.all_reduce, gradients[0])
            continue
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        _wait(dist.all_reduce, flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, summed in zip(gradients, parts, strict=True):
            gradient.copy_(summed.view_as(gradient))


def own_folder(folder: str | None) -> str | None:
    """Where in a checkpoint this process's own state lies."""
    return folder if folder is None or rank() == 0 else str(Path(folder) / f"rank-{rank()}")


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Those of which each process has a copy: of others each has its part, whose gradients are added as they are shared out."""
    return [weight for weight in model.parameters() if weight.requires_grad and not isinstance(weight, DTensor)]


def _buckets(gradients: list[Any]) -> Iterator[list[Any]]:
    """Parts of the list, each of one dtype."""
    part, size = list[Any](), 0
    for gradient in gradients:
        if part and (gradient.dtype != part[0].dtype or size + gradient.numel() > _BUCKET):
            yield part
            part, size = [], 0
        part.append(gradient)
        size += gradient.numel()
    if part:
        yield part


def _wait(collective: Callable[..., object], *given: Any, **named: Any) -> None:
    """Raises `Gone` where it cannot be done together, and the error itself where it is this machine's."""
    try:
        collective(*given, **named)
    except RuntimeError as error:
        if of_the_machine(error) is not None:
            raise
        raise Gone(f"the other processes of the run do not answer: {error}") from error
