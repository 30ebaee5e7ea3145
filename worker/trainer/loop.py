"""The one training loop: transformers' `Trainer`, with our batches and our loss.

An optimiser step is `rows_per_step` rows exactly, however many micro-batches they are run in. Its loss is the mean over all
that the stage counts in the step (for `sft` loss tokens), so it does not depend on how the rows were split, nor on how many
processes share them (`ranks.py`): each runs this loop on its part, and their gradients are added before the step is taken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from app.jobs.estimate import Memory, count_steps
from app.jobs.hyperparameters import Hyperparameters, Reinforcement
from app.jobs.spec import Validation
from worker.trainer import ranks, sharding
from worker.trainer.arguments import arguments_of
from worker.trainer.checkpoints import SECONDS_BETWEEN, Checkpoints, RunState, commit, read_state, reading
from worker.trainer.data.batches import LengthBuckets
from worker.trainer.data.rows import Item
from worker.trainer.events import Emit
from worker.trainer.failures import not_finite
from worker.trainer.micro_batches import MicroBatches
from worker.trainer.precision import autocast, scale_gradients, unscale_gradients, was_left_out
from worker.trainer.preflight import fly, is_needed
from worker.trainer.stages import Stage
from worker.trainer.stages.texts import Batch
from worker.trainer.stopping import StopSignal
from worker.trainer.validating import BestWeights, Judge, Sums, add, means, measure, of_all, together

Found = TypeVar("Found")

# (model, the options of torch's AdamW) → what changes its weights; None: AdamW.
MakeOptimizer = Callable[[Any, dict[str, Any]], torch.optim.Optimizer | None]

_SPEED_WINDOW = 50  # steps over which tokens per second and the time left are measured


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished or stopped run came to. Losses are those of the last step, of the last validation and of the best one."""

    steps: int
    loss: float
    validation_loss: float | None
    best_step: int | None
    best_validation_loss: float | None
    stopped_early: bool


def train(
    model: Any,
    stage: Stage,
    items: list[Item],
    validation: list[Item],
    settings: Hyperparameters,
    *,
    judged_by: Validation | None,
    make_optimizer: MakeOptimizer,
    pad_id: int,
    micro_batches: MicroBatches,
    estimate: Memory | None,
    checkpoints: Checkpoints,
    emit: Emit,
    stop: StopSignal,
) -> Outcome:
    """Trains `model` in place, emits `step`, `validation` and `checkpoint` events, and ends after the step in which a stop
    was asked, with a checkpoint of it. `judged_by` says when `validation` is looked at, and what follows from it.

    Raises `Failure` `loss_not_finite`.
    """
    judge_by = judged_by if validation else None
    loop = _Loop(
        model, stage, items, validation, settings, judge_by, make_optimizer, pad_id, micro_batches, estimate, checkpoints, emit,
        stop,
    )  # fmt: skip
    loop.run()
    step, judge = loop.state.global_step, loop.judge
    early = judge.has_seen_enough() and step < loop.args.max_steps
    return Outcome(step, loop.last_loss, judge.last_loss, judge.best_step, judge.best_loss, early)


class _Loop(Trainer):  # type: ignore[misc]  # transformers is not type-checked
    def __init__(
        self,
        model: Any,
        stage: Stage,
        items: list[Item],
        validation: list[Item],
        settings: Hyperparameters,
        judged_by: Validation | None,
        make_optimizer: MakeOptimizer,
        pad_id: int,
        micro_batches: MicroBatches,
        estimate: Memory | None,
        checkpoints: Checkpoints,
        emit: Emit,
        stop: StopSignal,
    ) -> None:
        self.stage = stage
        self.validation = validation
        self.settings = settings
        self.make_optimizer = make_optimizer
        self.pad_id = pad_id
        self.micro_batches = micro_batches
        self.estimate = estimate
        self.checkpoints = checkpoints
        self.resumed = read_state(checkpoints.resume_from) if checkpoints.resume_from else None
        self.steps_per_epoch = math.ceil(len(items) / settings.rows_per_step)
        self.judge = Judge(judged_by, self.resumed)
        self.best = BestWeights(checkpoints)
        self.saved_step = self.resumed.step if self.resumed else 0
        self.saved_at = perf_counter()
        self.emit = emit
        self.stop = stop
        self.recent: deque[tuple[float, int]] = deque(maxlen=_SPEED_WINDOW)  # (seconds, tokens) of a step
        self.step_tokens = 0
        self.measured: dict[str, float] = {}
        self.last_loss = self.resumed.loss if self.resumed else math.nan
        super().__init__(
            model=model,
            args=arguments_of(settings, count_steps(len(items), settings), checkpoints.folder),
            train_dataset=items,
            callbacks=[_Hooks(self)],
        )
        scale_gradients(self.accelerator)
        self.remove_callback(PrinterCallback)

    def run(self) -> None:
        """Trains from the first step, or from the one after the checkpoint's, and leaves the model as the outcome is to be."""
        if self.resumed is None:
            self.train()
        else:
            self._go_on(self.resumed, str(self.checkpoints.resume_from))
        last = self.judge.best_step in (None, self.state.global_step)
        if self.judge.keeps_best() and not last and not self.stop.is_agreed():
            self.best.load(self.model)

    def _go_on(self, resumed: RunState, folder: str) -> None:
        """First the validation that the resumed run had not come to: it may be the one that ends the run."""
        if resumed.pending_validation:
            self._load_from_checkpoint(folder)
            self.state.global_step = resumed.step
            self.validate()
            if self.stop.is_agreed():
                return
        if self.judge.keeps_best() and self.judge.best_step is not None:
            self.best.take(Path(folder), own=self.judge.best_step == resumed.step)
        if resumed.step < self.args.max_steps and not self.judge.has_seen_enough():
            self.train(resume_from_checkpoint=folder)
            return
        # It had come to its end: the Trainer would take the rest of a last epoch that `max_steps` cuts off.
        self._load_from_checkpoint(folder)
        self.state.global_step = resumed.step

    def preflight(self) -> None:
        """Finds out whether the longest rows fit, before anything is trained, and tells of it. Nothing else is different after."""
        told: dict[str, Any] = {"peak_memory_bytes": None, "seconds": None}
        known = not isinstance(self.settings, Reinforcement)  # whose texts are yet to be drawn
        if any(ranks.gather(known and is_needed(self.estimate))):
            self.emit("phase", phase="preflight")
            longest = sorted(self.train_dataset, key=lambda item: item.length)[-self.settings.rows_per_step :]
            flight = fly(self.model, self.optimizer, partial(self._fit, "in the preflight", longest), self._learn_from)
            epochs = (self.args.max_steps - self.state.global_step) / self.steps_per_epoch
            own_tokens = sum(item.length for item in self.train_dataset) / ranks.count() * epochs
            told = {"peak_memory_bytes": flight.peak_bytes, "seconds": round(flight.seconds_a_token * own_tokens, 3)}
        self.emit("preflight", estimated_memory_bytes=self.estimate.total if self.estimate else None, **told)
        self.emit("phase", phase="training")

    def ends_epoch(self) -> bool:
        """Whether an epoch, or the run, ends with the present step."""
        step = self.state.global_step
        return bool(step % self.steps_per_epoch == 0 or step == self.args.max_steps)

    def is_validation_due(self) -> bool:
        """Whether there is to be a validation after the present step."""
        step = self.state.global_step
        return self.judge.is_due(step, ends_epoch=self.ends_epoch(), ends_run=step == self.args.max_steps)

    def is_checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint: one is made with each validation, and at an epoch's end."""
        if self.ends_epoch() or self.is_validation_due():
            return True
        if self.checkpoints.every is not None:
            return int(self.state.global_step) % self.checkpoints.every == 0
        return ranks.gather(perf_counter() - self.saved_at > SECONDS_BETWEEN)[0]

    def _get_output_dir(self, trial: object) -> str:
        return str(self.checkpoints.folder / "staged")

    def _save_checkpoint(self, model: Any, trial: object) -> None:
        """Called by the Trainer when it is told to save. A checkpoint is there completely or not at all. The first process writes
        it, but for the others' random states."""
        step, judge = self.state.global_step, self.judge
        if step == self.saved_step:
            return
        staged = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        target = self.checkpoints.folder / f"step-{step}"
        sharding.collect(self.model, self.optimizer)
        if ranks.rank() == 0:
            super()._save_checkpoint(model, trial)
            sharding.drop(self.model)
        else:
            self._save_rng_state(str(staged))
            self.saved_step = step
        ranks.gather(None)
        if ranks.rank() > 0:
            return
        if judge.keeps_best() and judge.best_step == step:
            self.best.take(staged, own=True)
        elif judge.keeps_best() and judge.best_step is not None:
            self.best.give(staged)
        commit(staged, target, self._run_state())
        self.saved_step, self.saved_at = step, perf_counter()
        validated = judge.last_loss if judge.last_step == step else None
        self.emit("checkpoint", step=step, path=str(target), validation_loss=validated)

    def _run_state(self) -> RunState:
        step, judge = self.state.global_step, self.judge
        return RunState(
            step=step,
            loss=self.last_loss,
            validation_loss=judge.last_loss,
            pending_validation=self.is_validation_due() and judge.last_step != step,
            best_loss=judge.best_loss,
            best_step=judge.best_step,
            without_gain=judge.without_gain,
            micro_batch_tokens=self.micro_batches.tokens,
            halved=self.micro_batches.halved,
            made_with=self.checkpoints.made_with,
        )

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(ranks.own_folder(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or "")):
            super()._load_rng_state(ranks.own_folder(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or "")):
            super()._load_scaler(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Called by the Trainer for the weights of a checkpoint."""
        assert output_dir is not None
        self.checkpoints.save(self.model, Path(output_dir), self._run_state())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.checkpoints.load(self.model, Path(resume_from_checkpoint))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Yields a step's rows."""
        lengths = [item.length for item in self.train_dataset]
        sampler = LengthBuckets(lengths, self.settings.rows_per_step, self.settings.seed)
        loader: DataLoader[Any] = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=list)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def _fit(self, what: str, items: list[Item], work: Callable[[list[Batch]], Found]) -> Found:
        """What `work` makes of this process's share of the items, in micro-batches that fit."""
        items = ranks.share(items, lambda item: item.length)

        def cut(tokens: int) -> list[Batch]:
            return self.stage.batches(items, self.pad_id, tokens)

        def on_device(made: list[Batch]) -> Found:
            evened = sharding.even(self.model, made, lambda: self.stage.batches(self.train_dataset[:1], self.pad_id, 1))
            return work(send_to_device(evened, self.args.device))

        answers = self.settings.batch_size // self.settings.rows_per_step  # that `rl` draws to a row; else its own
        return self.micro_batches.fit(self.model, what, len(items) * answers, cut, on_device)

    def create_optimizer(self, *given: Any) -> Any:
        """The method's, else the Trainer's."""
        _, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = self.make_optimizer(self.model, options | {"weight_decay": self.args.weight_decay})
        return sharding.watch(self.model, self.optimizer or super().create_optimizer(*given))

    def training_step(self, model: Any, inputs: list[Item], num_items_in_batch: object = None) -> torch.Tensor:
        """Forward and backward over a step's rows. Returns the step's loss, an fp32 scalar."""
        self.step_began = perf_counter()
        step = self.state.global_step + 1
        self.last_loss, self.measured, self.step_tokens = of_all(self._fit(f"at step {step}", inputs, self._learn_from))
        if not math.isfinite(self.last_loss):
            raise not_finite("loss", self.last_loss, step)
        ranks.sum_gradients(model)
        return torch.tensor(self.last_loss, device=self.args.device)

    def _learn_from(self, made: list[Batch]) -> Sums:
        """Adds the gradients of a step's micro-batches to the weights'. Returns their part of the loss, of what else is measured,
        and their tokens."""
        self.model.train()
        with autocast(self.args.device):
            made = self.stage.begin_step(self.model, made)
        count = ranks.total(sum(batch["count"] for batch in made))
        total = torch.zeros((), device=self.args.device)
        measured = dict[str, torch.Tensor]()
        for batch in made:
            with autocast(self.args.device):
                lost, also = self.stage.loss(self.model, batch, self.settings)
                loss = lost / count
            self.accelerator.backward(loss)
            total += loss.detach()
            add(measured, also)
        return total.item(), means(measured, count), sum(batch["tokens"] for batch in made)

    def _clip_grad_norm(self, model: Any) -> Any:
        unscale_gradients(self.accelerator, self.optimizer)
        return super()._clip_grad_norm(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called by the Trainer after each step. Emits it; keeps no history, which would grow with the run."""
        if "loss" not in logs:  # its summary at the end
            return
        step = self.state.global_step
        left_out = was_left_out(self.accelerator, logs["grad_norm"])
        if not math.isfinite(logs["grad_norm"]) and not left_out:
            raise not_finite("gradient's norm", logs["grad_norm"], step)
        took = perf_counter() - self.step_began
        self.recent.append((took, self.step_tokens))
        seconds, tokens = (sum(values) for values in zip(*self.recent, strict=True))
        self.emit(
            "step",
            step=step,
            loss=self.last_loss,
            learning_rate=logs["learning_rate"],
            grad_norm=None if left_out else logs["grad_norm"],
            **self.measured,
            tokens=self.step_tokens,
            seconds=round(took, 6),
            epoch=round(self.state.epoch, 6),
            tokens_per_second=round(tokens / seconds, 1),
            eta_seconds=round((self.state.max_steps - step) * seconds / len(self.recent), 1),
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Called by the Trainer when it is told to evaluate: after the step was told of, before it is saved."""
        self.validate()
        self.control.should_evaluate = False  # the Trainer asks again at the epoch's end
        if self.stop.is_agreed() or self.judge.has_seen_enough():
            self.control.should_training_stop = self.control.should_save = True
        return {}

    def validate(self) -> None:
        """Emits the mean loss over all that the stage counts in the validation rows, and whether it was the last one for which
        there was patience; nothing where a stop is asked meanwhile."""
        fit = together(partial(self._fit, "in the validation"), lambda: self.stop.requested)
        leaves_off = partial(sharding.may_leave_off, self.model, self.stop)
        found = measure(self.model, self.stage, self.validation, self.settings, fit, leaves_off)
        if found is None:
            return
        step, judge, (loss, measured) = self.state.global_step, self.judge, found
        if not math.isfinite(loss):
            raise not_finite("validation loss", loss, step)
        judge.add(step, loss)
        self.emit("validation", step=step, loss=loss, **measured)
        if judge.has_seen_enough() and step < self.args.max_steps:
            self.emit(
                "stopped_early",
                step=step,
                validations=judge.without_gain,
                best_step=judge.best_step,
                loss=judge.best_loss,
            )

    def floating_point_ops(self, inputs: object) -> int:
        return 0  # the Trainer counts them for its own summary, by the shape of a batch that is not like ours


class _Hooks(TrainerCallback):  # type: ignore[misc]
    def __init__(self, loop: _Loop) -> None:
        self.loop = loop

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.preflight()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.loop.stop.is_agreed():
            control.should_training_stop = control.should_save = True
        else:
            control.should_evaluate = self.loop.is_validation_due()
            control.should_save = self.loop.is_checkpoint_due()
        return control
