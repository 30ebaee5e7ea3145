"""A run from spec to artifacts, top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pydantic import ValidationError
from transformers import set_seed

from app.jobs.spec import TrainerSpec
from worker.trainer import artifacts
from worker.trainer.base import (
    computes_bf16,
    load_model,
    own_dtype,
    training_dtype,
)
from worker.trainer.checkpoints import Checkpoints, RunState, differences, read_state, unreadable_checkpoint
from worker.trainer.data.render import ChatTemplateError, Example
from worker.trainer.data.rows import read_rows, split
from worker.trainer.data.tokenizer import load_tokenizer
from worker.trainer.determinism import SUMS_DIFFER, be_deterministic, repeats_sums
from worker.trainer.events import Emit
from worker.trainer.failures import Failure
from worker.trainer.loop import count_steps, micro_batch_tokens, train
from worker.trainer.methods import METHODS
from worker.trainer.proof import find_proof
from worker.trainer.stages import STAGES
from worker.trainer.stopping import StopSignal

FAULT = "This is a fault of the service, not of the job."


def read_spec(path: Path) -> TrainerSpec:
    """Raises `Failure` where the file is no `TrainerSpec` with epochs and a learning rate in numbers."""
    try:
        spec = TrainerSpec.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise Failure("trainer_error", f"The spec {path} cannot be read: {error}", FAULT) from error
    if "auto" in (spec.spec.hyperparameters.learning_rate, spec.spec.hyperparameters.epochs):
        raise Failure("trainer_error", "The spec's learning_rate or epochs is still 'auto'.", FAULT)
    return spec


def run(spec: TrainerSpec, out: Path, emit: Emit, stop: StopSignal) -> None:
    """Trains as the spec says and writes OUT/. Raises `Failure`, and `Stopped` at a SIGTERM."""
    began = perf_counter()
    settings, method = spec.spec.hyperparameters, METHODS[spec.spec.method.type]
    be_deterministic(settings.deterministic)
    out.mkdir(parents=True, exist_ok=True)
    if spec.threads > 0:
        torch.set_num_threads(spec.threads)

    emit("phase", phase="loading")
    tokenizer = load_tokenizer(spec.base_model, spec.chat_template, spec.own_code)
    data = _read(spec, tokenizer)
    _check(data, settings.max_length, spec.spec.check.max_cut_share)
    _warn(data, settings.max_length, emit)
    base = load_model(spec.base_model, training_dtype(), spec.own_code)
    dtype, parameters = base.dtype, base.num_parameters()
    stop_ids = _stop_token_ids(data.train, tokenizer, base, emit)
    set_seed(settings.seed)
    try:
        model = method.prepare(base, spec.spec.method)
    except ValueError as error:
        raise Failure("trainer_error", str(error), "See method.target_modules.") from error
    if spec.adapter:
        try:
            method.load(model, Path(spec.adapter))
        except (OSError, ValueError) as error:
            message = f"The adapter in {spec.adapter} cannot be trained further: {error}"
            raise Failure("model_unreadable", message, "Train from its base model instead.") from error

    made_with = artifacts.made_with(dtype, computes_bf16()) | {"micro_batch_tokens": micro_batch_tokens()}
    every = None if settings.checkpoint_every == "auto" else settings.checkpoint_every
    resume_from = Path(spec.resume_from) if spec.resume_from else None
    emit("phase", phase="training")
    summary = _resumption(resume_from, made_with) | {
        "total_steps": count_steps(len(data.train), settings),
        "rows": data.rows,
        "validation_rows": data.validation_rows,
        "cut_rows": data.cut,
        "cut_ends": data.cut_ends,
        "tokens_lost": data.tokens_lost,
        "dropped_rows": data.dropped,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": parameters,
        "loss_tokens": sum(int(example.loss_mask[1:].sum()) for example in data.train),
        "tokens": sum(len(example.token_ids) for example in data.train),
        "examples": len(data.train),
        "gpus": torch.cuda.device_count(),
    }
    emit("started", **summary)
    about = {
        "job": spec.job,
        "attempt": spec.attempt,
        "provenance": spec.provenance,
        "spec": spec.spec.model_dump(mode="json"),
        "data": summary,
        "stop_token_ids": stop_ids,
        "made_with": made_with,
    }

    def save_adapter(model: Any, folder: Path) -> None:
        method.save(model, folder, str(spec.provenance.get("base_model", Path(spec.base_model).name)))
        artifacts.save_tokenizer(tokenizer, folder)

    def save_checkpoint(model: Any, folder: Path, state: RunState) -> None:
        save_adapter(model, folder / "adapter")
        came_to = {"steps": state.step, "loss": state.loss, "validation_loss": state.validation_loss}
        artifacts.write_json(folder / "manifest.json", about | {"result": came_to})

    def load_checkpoint(model: Any, folder: Path) -> None:
        try:
            method.load(model, folder / "adapter")
        except (OSError, ValueError) as error:
            raise unreadable_checkpoint(folder, error) from error

    checkpoints = Checkpoints(out / "checkpoints", every, resume_from, made_with, save_checkpoint, load_checkpoint)
    checkpoints.folder.mkdir(exist_ok=True)
    training_began = perf_counter()
    with stop.deferred():
        outcome = train(
            model,
            STAGES[spec.spec.stage],
            data.train,
            data.validation,
            settings,
            pad_id=tokenizer.pad_token_id or 0,
            checkpoints=checkpoints,
            emit=emit,
            stop_requested=lambda: stop.requested,
        )
    training_seconds = perf_counter() - training_began

    save_adapter(model, out / "adapter")
    artifacts.write_json(out / "proof.json", find_proof(model, data.train))
    del model, base
    if spec.spec.deploy.mode == "merged":
        emit("phase", phase="merging")
        whole = load_model(spec.base_model, torch.float32, spec.own_code)
        merged = method.merge(whole, out / "adapter").to(own_dtype(spec.base_model, spec.own_code))
        artifacts.save_merged(merged, tokenizer, out / "merged", stop_ids)

    result = {
        "steps": outcome.steps,
        "loss": outcome.loss,
        "validation_loss": outcome.validation_loss,
        "training_seconds": round(training_seconds, 3),
        "seconds": round(perf_counter() - began, 3),
    }
    artifacts.write_json(out / "manifest.json", about | {"result": result})
    for made in out.iterdir():
        if made != checkpoints.folder:  # whose checkpoints are taken away meanwhile
            artifacts.sync(made)
    artifacts.sync_entry(out)
    emit("finished", step=outcome.steps, **{name: value for name, value in result.items() if name != "steps"})


def _resumption(resume_from: Path | None, made_with: dict[str, Any]) -> dict[str, Any]:
    """From which step the run goes on, and why its bits may not be those of a run that never stopped. Raises `Failure`."""
    if resume_from is None:
        return {"start_step": 0, "differences": []}
    state = read_state(resume_from)
    differ = differences(state.made_with, made_with)
    return {"start_step": state.step, "differences": [*differ, *([] if repeats_sums() else [SUMS_DIFFER])]}


@dataclass(frozen=True, slots=True)
class _Data:
    """Examples to train and to validate on, and counts of the rows (conversations) that they come from.

    `cut_ends_share`: of the rows of the training file, those in which an answer lost its end-of-turn token.
    """

    train: list[Example]
    validation: list[Example]
    rows: int
    validation_rows: int
    cut: int
    cut_ends: int
    cut_ends_share: float
    tokens_lost: int
    dropped: int


def _read(spec: TrainerSpec, tokenizer: Any) -> _Data:
    settings, held_out = spec.spec.hyperparameters, spec.spec.validation
    try:
        files = [read_rows(path, tokenizer, settings.max_length) for path in (spec.rows, spec.validation_rows) if path]
    except ChatTemplateError as error:
        hint = "Give the base model a chat_template that fits these rows, or change the rows."
        raise Failure("trainer_error", str(error), hint) from error
    train_rows, validation_rows = files[0].examples_by_row, files[1].examples_by_row if len(files) > 1 else []
    if held_out is not None and held_out.fraction is not None:
        train_rows, validation_rows = split(
            train_rows, held_out.fraction, settings.seed if held_out.seed is None else held_out.seed
        )
    if not train_rows:
        raise Failure(
            "no_trainable_rows",
            f"No row is left to train on: {files[0].dropped} rows have no token of an assistant's answer within "
            f"{settings.max_length} tokens, {len(validation_rows)} are held out for validation.",
            "Raise hyperparameters.max_length, or check that the rows end with an assistant's turn.",
        )
    return _Data(
        train=[example for row in train_rows for example in row],
        validation=[example for row in validation_rows for example in row],
        rows=len(train_rows),
        validation_rows=len(validation_rows),
        cut=sum(file.cut for file in files),
        cut_ends=sum(file.cut_ends for file in files),
        cut_ends_share=files[0].cut_ends / files[0].read,
        tokens_lost=sum(file.tokens_lost for file in files),
        dropped=sum(file.dropped for file in files),
    )


def _check(data: _Data, max_length: int, max_cut_share: float) -> None:
    """Refuses to train on answers most of which (by the job's own measure) never end: the model would not learn to stop."""
    if data.cut_ends_share > max_cut_share:
        raise Failure(
            "data_check_failed",
            f"{data.cut_ends_share:.1%} of the rows would lose an answer's end-of-turn token at max_length ({max_length} "
            f"tokens), more than check.max_cut_share ({max_cut_share:.1%}) allows: {data.cut} rows are longer and would lose "
            f"{data.tokens_lost} tokens.",
            "Raise hyperparameters.max_length, shorten the rows, or set check.max_cut_share to 1.",
        )


def _warn(data: _Data, max_length: int, emit: Emit) -> None:
    if data.cut:
        emit(
            "warning",
            message=f"{data.cut} rows were longer than max_length ({max_length} tokens) and lost their end, "
            f"{data.tokens_lost} tokens in all; in {data.cut_ends} of them an answer lost its end-of-turn token.",
        )
    if data.dropped:
        emit(
            "warning", message=f"{data.dropped} rows were dropped: no token of an assistant's answer was left in them."
        )


def _stop_token_ids(examples: list[Example], tokenizer: Any, base: Any, emit: Emit) -> list[int]:
    """The tokens that the template ends turns with, which an engine must stop at. Warns where it would not by itself."""
    special = set(tokenizer.all_special_ids)
    special |= {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {int(example.token_ids[example.loss_mask][-1]) for example in examples} & special
    configured = base.generation_config.eos_token_id
    known = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    if foreign := ends - known:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(foreign)))
        emit("warning", message=f"The chat template ends turns with {names}, which the base model does not stop at.")
    return sorted(ends)
