"""What a model makes of held-out rows, and what follows from it while the model trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from app.jobs.spec import Validation
from worker.trainer import ranks
from worker.trainer.checkpoints import Checkpoints, RunState
from worker.trainer.data.rows import Item
from worker.trainer.precision import autocast
from worker.trainer.stages import Stage
from worker.trainer.stages.texts import Batch

Sums = tuple[float, dict[str, float], int]  # of losses, of what else was measured, and how many there are
Group = Callable[[list[Batch]], Sums | None]
Fit = Callable[[list[Item], Group], Sums | None]

_ROWS = 256  # sorted and split together


def measure(
    model: Any,
    stage: Stage,
    items: list[Item],
    settings: Any,
    fit: Fit,
    stop_requested: Callable[[], bool] = lambda: False,
) -> tuple[float, dict[str, float]] | None:
    """The mean loss over all that the stage counts in the items, without dropout, and the means of what else it measures.

    `fit` runs a function of micro-batches on some of the items. None where a stop is asked meanwhile. The model is left in
    evaluation mode.
    """

    def ask(made: list[Batch]) -> Sums | None:
        total, count = 0.0, 0
        measured = dict[str, torch.Tensor]()
        for batch in stage.begin_step(model, send_to_device(made, device)):
            if stop_requested():
                return None
            lost, also = stage.loss(model, batch, settings)
            total += lost.item()
            add(measured, also)
            count += batch["count"]
        return total, {name: float(value) for name, value in measured.items()}, count

    model.eval()
    device = next(model.parameters()).device
    sums: Sums = (0.0, {}, 0)
    shortest_first = sorted(items, key=lambda item: item.length)
    with torch.no_grad(), autocast(device):
        for start in range(0, len(shortest_first), _ROWS):
            found = fit(shortest_first[start : start + _ROWS], ask)
            if found is None:
                return None
            sums = _both(sums, found)
    total, measured, count = sums
    return total / count, {name: value / count for name, value in measured.items()}


def of_all(sums: Sums) -> Sums:
    """The sums over all processes of the run."""
    return reduce(_both, ranks.gather(sums))


def together(fit: Fit, stop_requested: Callable[[], bool]) -> Fit:
    """`fit`, of which each process runs its share, with what is found in all of the items; None where any finds none, or is asked
    to stop."""

    def in_all(items: list[Item], work: Group) -> Sums | None:
        own = fit(items, work)
        found = ranks.gather(None if stop_requested() else own)
        return None if None in found else reduce(_both, filter(None, found))

    return in_all


def _both(one: Sums, other: Sums) -> Sums:
    names = [*one[1], *(name for name in other[1] if name not in one[1])]
    measured = {name: one[1].get(name, 0.0) + other[1].get(name, 0.0) for name in names}
    return one[0] + other[0], measured, one[2] + other[2]


def add(sums: dict[str, torch.Tensor], more: dict[str, torch.Tensor]) -> None:
    """Adds what a micro-batch measured to the sums of those before it."""
    for name, value in more.items():
        sums[name] = sums[name] + value.detach() if name in sums else value.detach()


def means(measured: dict[str, torch.Tensor], count: int) -> dict[str, float]:
    """The means of such sums."""
    return {name: float(value) / count for name, value in measured.items()}


class Judge:
    """The validations of a run so far: the loss of the last, the lowest loss and its step, and how many came since then."""

    def __init__(self, rule: Validation | None, resumed: RunState | None) -> None:
        self.rule = rule
        self.last_step = resumed.step if resumed and not resumed.pending_validation else 0
        self.last_loss = resumed.validation_loss if resumed else None
        self.best_loss = resumed.best_loss if resumed else None
        self.best_step = resumed.best_step if resumed else None
        self.without_gain = resumed.without_gain if resumed else 0

    def is_due(self, step: int, *, ends_epoch: bool, ends_run: bool) -> bool:
        """Whether there is to be a validation after this step."""
        if self.rule is None:
            return False
        return ends_run or (ends_epoch if self.rule.every == "epoch" else step % self.rule.every == 0)

    def add(self, step: int, loss: float) -> None:
        """Takes the loss of a validation."""
        self.last_step, self.last_loss = step, loss
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.without_gain = loss, step, 0
        else:
            self.without_gain += 1

    def has_seen_enough(self) -> bool:
        """Whether there were `patience` validations in a row without a lower loss."""
        return self.rule is not None and self.rule.patience is not None and self.without_gain >= self.rule.patience

    def keeps_best(self) -> bool:
        """Whether the outcome is what had the lowest loss."""
        return self.rule is not None and self.rule.keep == "best"


class BestWeights:
    """The weights of the lowest validation loss so far, in a folder of the run's own. Each checkpoint carries them too, unless
    they are its own, so that whoever goes on from it needs no other one."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.folder = checkpoints.folder / "best"

    def take(self, folder: Path, *, own: bool) -> None:
        """Takes them from a checkpoint: its own weights, or those that it carries. Of several processes the first one does."""
        if ranks.rank() > 0:
            return
        source = folder if own else folder / self.folder.name
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(source / self.checkpoints.kind, self.folder / self.checkpoints.kind)

    def give(self, folder: Path) -> None:
        """Lays them into a checkpoint."""
        shutil.copytree(self.folder, folder / self.folder.name)

    def load(self, model: Any) -> None:
        """Puts them back into the model."""
        self.checkpoints.load(model, self.folder)
