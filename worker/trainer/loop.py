"""The one training loop: transformers' `Trainer`, with our batches and our loss.

An optimiser step is `batch_size` rows exactly, however many micro-batches they are run in. Its loss is the mean over all
that the stage counts in the step (for `sft` loss tokens), so it does not depend on how the rows were split.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate.utils import send_to_device
from peft.optimizers import create_loraplus_optimizer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from app.jobs.hyperparameters import Hyperparameters, Supervised
from worker.trainer.base import autocast
from worker.trainer.checkpoints import SECONDS_BETWEEN, Checkpoints, RunState, commit, read_state
from worker.trainer.data.batches import LengthBuckets
from worker.trainer.data.rows import Item
from worker.trainer.events import Emit
from worker.trainer.failures import Failure
from worker.trainer.stages import Stage
from worker.trainer.stages.texts import Batch

# Padded tokens of a micro-batch: enough to keep the cores or the GPU busy, little enough for its activations to fit.
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 8192}

_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_SPEED_WINDOW = 50  # steps over which tokens per second and the time left are measured
_VALIDATION_ROWS = 256  # rows sorted and split together


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished or stopped run came to. Losses are those of the last step and of the last validation."""

    steps: int
    loss: float
    validation_loss: float | None


def micro_batch_tokens() -> int:
    """Padded tokens of a micro-batch on this machine."""
    return MICRO_BATCH_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]


def count_steps(items: int, settings: Hyperparameters) -> int:
    """Optimiser steps of a run: `epochs` passes, an incomplete last batch counted, or `max_steps` if that is fewer."""
    steps = math.ceil(float(settings.epochs) * math.ceil(items / settings.batch_size))
    return min(steps, settings.max_steps or steps)


def train(
    model: Any,
    stage: Stage,
    items: list[Item],
    validation: list[Item],
    settings: Hyperparameters,
    *,
    plus: float | None,
    pad_id: int,
    checkpoints: Checkpoints,
    emit: Emit,
    stop_requested: Callable[[], bool],
) -> Outcome:
    """Trains `model` in place, emits `step`, `validation` and `checkpoint` events, and ends after the step in which a stop
    was asked, with a checkpoint of it.

    Raises `Failure` `loss_not_finite`.
    """
    loop = _Loop(model, stage, items, validation, settings, plus, pad_id, checkpoints, emit, stop_requested)
    loop.run()
    return Outcome(loop.state.global_step, loop.last_loss, loop.last_validation_loss)


class _Loop(Trainer):  # type: ignore[misc]  # transformers is not type-checked
    def __init__(
        self,
        model: Any,
        stage: Stage,
        items: list[Item],
        validation: list[Item],
        settings: Hyperparameters,
        plus: float | None,
        pad_id: int,
        checkpoints: Checkpoints,
        emit: Emit,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.stage = stage
        self.validation = validation
        self.settings = settings
        self.plus = plus
        self.pad_id = pad_id
        self.checkpoints = checkpoints
        self.resumed = read_state(checkpoints.resume_from) if checkpoints.resume_from else None
        self.steps_per_epoch = math.ceil(len(items) / settings.batch_size)
        self.saved_step = self.validated_step = self.resumed.step if self.resumed else 0
        self.saved_at = perf_counter()
        self.emit = emit
        self.stop_requested = stop_requested
        self.recent: deque[tuple[float, int]] = deque(maxlen=_SPEED_WINDOW)  # (seconds, tokens) of a step
        self.step_began = 0.0
        self.step_tokens = 0
        self.measured: dict[str, float] = {}
        self.last_loss = self.resumed.loss if self.resumed else math.nan
        self.last_validation_loss = self.resumed.validation_loss if self.resumed else None
        super().__init__(
            model=model,
            args=_arguments(settings, count_steps(len(items), settings), checkpoints.folder),
            train_dataset=items,
            callbacks=[_Hooks(self)],
        )
        self.remove_callback(PrinterCallback)

    def run(self) -> None:
        """Trains from the first step, or from the one after the checkpoint's."""
        if self.resumed is None:
            self.train()
            return
        folder = str(self.checkpoints.resume_from)
        if self.resumed.step < self.args.max_steps:
            self.train(resume_from_checkpoint=folder)
            return
        # It had come to its end: the Trainer would take the rest of a last epoch that `max_steps` cuts off.
        self._load_from_checkpoint(folder)
        self.state.global_step = self.resumed.step
        self.validate_pending()

    def validate_pending(self) -> None:
        """The validation that the resumed run had not come to."""
        if self.resumed is not None and self.resumed.pending_validation and self.validation:
            self.validate()

    def ends_epoch(self) -> bool:
        """Whether an epoch, or the run, ends with the present step."""
        step = self.state.global_step
        return bool(step % self.steps_per_epoch == 0 or step == self.args.max_steps)

    def is_checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint within an epoch."""
        if self.checkpoints.every is not None:
            return int(self.state.global_step) % self.checkpoints.every == 0
        return perf_counter() - self.saved_at > SECONDS_BETWEEN

    def _get_output_dir(self, trial: object) -> str:
        return str(self.checkpoints.folder / "staged")

    def _save_checkpoint(self, model: Any, trial: object) -> None:
        """Called by the Trainer when it is told to save. A checkpoint is there completely or not at all."""
        step = self.state.global_step
        if step == self.saved_step:
            return
        super()._save_checkpoint(model, trial)
        target = self.checkpoints.folder / f"step-{step}"
        commit(Path(self._get_output_dir(trial)) / f"checkpoint-{step}", target, self._run_state())
        self.saved_step, self.saved_at = step, perf_counter()
        self.emit("checkpoint", step=step, path=str(target))

    def _run_state(self) -> RunState:
        step = self.state.global_step
        return RunState(
            step=step,
            loss=self.last_loss,
            validation_loss=self.last_validation_loss,
            pending_validation=bool(self.validation) and self.ends_epoch() and self.validated_step != step,
            made_with=self.checkpoints.made_with,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Called by the Trainer for the weights of a checkpoint."""
        assert output_dir is not None
        self.checkpoints.save(self.model, Path(output_dir), self._run_state())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.checkpoints.load(self.model, Path(resume_from_checkpoint))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Yields a step's rows as its list of micro-batches."""
        lengths = [item.length for item in self.train_dataset]
        sampler = LengthBuckets(lengths, self.settings.batch_size, self.settings.seed)
        loader: DataLoader[Any] = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self._micro_batches)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def _micro_batches(self, items: list[Item]) -> list[Batch]:
        return self.stage.batches(items, self.pad_id, micro_batch_tokens())

    def create_optimizer(self, *given: Any) -> Any:
        """With `plus` LoRA+'s (Hayou et al., 2024, arXiv:2402.12354), as PEFT makes its groups; else the Trainer's."""
        if self.plus is None:
            return super().create_optimizer(*given)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        options |= {"weight_decay": self.args.weight_decay}
        self.optimizer = create_loraplus_optimizer(self.model, kind, loraplus_lr_ratio=self.plus, **options)
        return self.optimizer

    def training_step(self, model: Any, inputs: list[Batch], num_items_in_batch: object = None) -> torch.Tensor:
        """Forward and backward over a step's micro-batches. Returns the step's loss, an fp32 scalar."""
        self.step_began = perf_counter()
        self.step_tokens = sum(batch["tokens"] for batch in inputs)
        count = sum(batch["count"] for batch in inputs)
        model.train()
        with autocast(self.args.device):
            self.stage.begin_step(model, inputs)
        total = torch.zeros((), device=self.args.device)
        measured = dict[str, torch.Tensor]()
        for batch in inputs:
            with autocast(self.args.device):
                lost, also = self.stage.loss(model, batch, self.settings)
                loss = lost / count
            self.accelerator.backward(loss)
            total += loss.detach()
            _add(measured, also)
        self.measured = _means(measured, count)
        self.last_loss = total.item()
        if not math.isfinite(self.last_loss):
            raise _not_finite("loss", self.last_loss, self.state.global_step + 1)
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called by the Trainer after each step. Emits it; keeps no history, which would grow with the run."""
        if "loss" not in logs:  # its summary at the end
            return
        step = self.state.global_step
        if not math.isfinite(logs["grad_norm"]):
            raise _not_finite("gradient's norm", logs["grad_norm"], step)
        took = perf_counter() - self.step_began
        self.recent.append((took, self.step_tokens))
        seconds, tokens = (sum(values) for values in zip(*self.recent, strict=True))
        self.emit(
            "step",
            step=step,
            loss=self.last_loss,
            learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            **self.measured,
            tokens=self.step_tokens,
            seconds=round(took, 6),
            epoch=round(self.state.epoch, 6),
            tokens_per_second=round(tokens / seconds, 1),
            eta_seconds=round((self.state.max_steps - step) * seconds / len(self.recent), 1),
        )

    @torch.no_grad()
    def validate(self) -> None:
        """Emits the mean loss over the loss tokens of the validation rows, unless a stop is asked meanwhile."""
        self.model.eval()
        total, count = 0.0, 0
        measured = dict[str, torch.Tensor]()
        for group in self._validation_groups():
            with autocast(self.args.device):
                self.stage.begin_step(self.model, group)
                for batch in group:
                    if self.stop_requested():
                        return
                    lost, also = self.stage.loss(self.model, batch, self.settings)
                    total += lost.item()
                    _add(measured, also)
                    count += batch["count"]
        self.last_validation_loss = total / count
        if not math.isfinite(self.last_validation_loss):
            raise _not_finite("validation loss", self.last_validation_loss, self.state.global_step)
        self.validated_step = self.state.global_step
        self.emit("validation", step=self.state.global_step, loss=self.last_validation_loss, **_means(measured, count))

    def _validation_groups(self) -> Iterator[list[Batch]]:
        shortest_first = sorted(self.validation, key=lambda item: item.length)
        for start in range(0, len(shortest_first), _VALIDATION_ROWS):
            made = self._micro_batches(shortest_first[start : start + _VALIDATION_ROWS])
            yield send_to_device(made, self.args.device)

    def floating_point_ops(self, inputs: object) -> int:
        return 0  # the Trainer counts them for its own summary, by the shape of a batch that is not like ours


class _Hooks(TrainerCallback):  # type: ignore[misc]
    def __init__(self, loop: _Loop) -> None:
        self.loop = loop

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.validate_pending()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.loop.stop_requested():
            control.should_training_stop = control.should_save = True
        elif not self.loop.ends_epoch():  # there it is saved after the validation
            control.should_save = self.loop.is_checkpoint_due()
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Also comes after the last step where that is within an epoch."""
        if self.loop.validation and not self.loop.stop_requested():
            self.loop.validate()
        control.should_save = True
        if self.loop.stop_requested():
            control.should_training_stop = True
        return control


def _arguments(settings: Hyperparameters, steps: int, out: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULERS[settings.scheduler],
        # In steps: the Trainer takes a ratio too, but reads 1.0 as one step.
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        optim="adamw_torch_fused",
        neftune_noise_alpha=settings.neftune_alpha if isinstance(settings, Supervised) else None,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,  # `autocast` around the loss alone; the Trainer's would copy all logits to fp32
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    _ = arguments.device  # sets _n_gpu
    arguments._n_gpu = 1  # with several in sight the Trainer would use DataParallel
    return arguments


def _add(sums: dict[str, torch.Tensor], more: dict[str, torch.Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value.detach() if name in sums else value.detach()


def _means(measured: dict[str, torch.Tensor], count: int) -> dict[str, float]:
    return {name: float(value) / count for name, value in measured.items()}


def _not_finite(what: str, value: float, step: int) -> Failure:
    return Failure(
        "loss_not_finite",
        f"The {what} was {value} at step {step}.",
        "Lower hyperparameters.learning_rate. At step 1 the cause may be the base model's weights.",
    )
