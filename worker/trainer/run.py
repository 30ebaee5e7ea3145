"""A run from spec to artifacts, top to bottom."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pydantic import ValidationError
from transformers import set_seed

from app.jobs import combinations
from app.jobs.hyperparameters import Pretraining
from app.jobs.spec import TrainerSpec
from worker.trainer import artifacts
from worker.trainer.base import Base, computes_bf16, random_model
from worker.trainer.checkpoints import Checkpoints, differences, read_state
from worker.trainer.data import dataset
from worker.trainer.data.tokenizer import load_tokenizer
from worker.trainer.determinism import SUMS_DIFFER, be_deterministic, repeats_sums
from worker.trainer.events import Emit
from worker.trainer.failures import Failure
from worker.trainer.loop import count_steps, micro_batch_tokens, train
from worker.trainer.methods import METHODS, Method
from worker.trainer.outcome import Writer
from worker.trainer.proof import Proof, find_score
from worker.trainer.reference import with_reference
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
    settings, method, stage = spec.spec.hyperparameters, METHODS[spec.spec.method.type], STAGES[spec.spec.stage]
    be_deterministic(settings.deterministic)
    out.mkdir(parents=True, exist_ok=True)
    if spec.threads > 0:
        torch.set_num_threads(spec.threads)

    emit("phase", phase="loading")
    tokenizer = load_tokenizer(spec.base_model, spec.chat_template, spec.own_code)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    data = dataset.read(spec, tokenizer)
    dataset.check(data, settings.max_length, spec.spec.check.max_cut_share)
    dataset.warn(data, settings.max_length, emit)
    base = Base(spec.base_model, spec.own_code, combinations.STAGES[spec.spec.stage].makes, pad_id)
    model, dtype, parameters, stops_at = _load(spec, base, method)
    stop_ids = dataset.stop_token_ids(data.train, tokenizer, stops_at, emit)
    is_language_model = base.makes == "language model"
    proof = Proof(model, data.train) if is_language_model else None
    if spec.adapter:
        try:
            method.load(model, Path(spec.adapter))
        except (OSError, ValueError) as error:
            message = f"The adapter in {spec.adapter} cannot be trained further: {error}"
            raise Failure("model_unreadable", message, "Train from its base model instead.") from error
    train_items, validation_items = stage.prepare(data.train), stage.prepare(data.validation)
    if stage.needs_reference(settings):
        emit("phase", phase="measuring")
        most = micro_batch_tokens()
        train_items = with_reference(model, train_items, pad_id, most)
        validation_items = with_reference(model, validation_items, pad_id, most)

    made_with = artifacts.made_with(dtype, computes_bf16()) | {"micro_batch_tokens": micro_batch_tokens()}
    every = None if settings.checkpoint_every == "auto" else settings.checkpoint_every
    resume_from = Path(spec.resume_from) if spec.resume_from else None
    emit("phase", phase="training")
    examples = [example for item in data.train for example in item.examples]
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
        "loss_tokens": sum(int(example.loss_mask[1:].sum()) for example in examples),
        "tokens": sum(len(example.token_ids) for example in examples),
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
    writer = Writer(spec, method, base, tokenizer, stop_ids, about)
    checkpoints = Checkpoints(
        out / "checkpoints", every, resume_from, made_with, writer.save_checkpoint, writer.load_checkpoint
    )
    checkpoints.folder.mkdir(exist_ok=True)
    training_began = perf_counter()
    with stop.deferred():
        outcome = train(
            model,
            stage,
            train_items,
            validation_items,
            settings,
            plus=getattr(spec.spec.method, "plus", None),
            pad_id=pad_id,
            checkpoints=checkpoints,
            emit=emit,
            stop_requested=lambda: stop.requested,
        )
    training_seconds = perf_counter() - training_began

    artifacts.write_json(out / "proof.json", proof.find(model) if proof else find_score(model, data.train))
    writer.save_outcome(model, out, emit)

    result = {
        "steps": outcome.steps,
        "loss": outcome.loss,
        "validation_loss": outcome.validation_loss,
        "training_seconds": round(training_seconds, 3),
        "seconds": round(perf_counter() - began, 3),
    }
    writer.write_manifest(out, result)
    for made in out.iterdir():
        if made != checkpoints.folder:  # whose checkpoints are taken away meanwhile
            artifacts.sync(made)
    artifacts.sync_entry(out)
    emit("finished", step=outcome.steps, **{name: value for name, value in result.items() if name != "steps"})


def _load(spec: TrainerSpec, base: Base, method: Method) -> tuple[Any, torch.dtype, int, Any]:
    """The model, ready to be trained; its dtype and number of parameters as they were; and what its answers stop at.

    Raises `Failure`.
    """
    settings = spec.spec.hyperparameters
    set_seed(settings.seed)
    if isinstance(settings, Pretraining) and settings.initial_weights == "random":
        loaded = random_model(base)
    else:
        loaded = method.load_base(base, spec.spec.method)
    dtype, parameters = loaded.dtype, loaded.num_parameters()
    generation = getattr(loaded, "generation_config", None)  # a reward model has none
    stops_at = generation.eos_token_id if generation is not None else None
    set_seed(settings.seed)
    try:
        return method.prepare(loaded, spec.spec.method), dtype, parameters, stops_at
    except ValueError as error:
        raise Failure("trainer_error", str(error), "Change the field that it names.") from error


def _resumption(resume_from: Path | None, made_with: dict[str, Any]) -> dict[str, Any]:
    """From which step the run goes on, and why its bits may not be those of a run that never stopped. Raises `Failure`."""
    if resume_from is None:
        return {"start_step": 0, "differences": []}
    state = read_state(resume_from)
    differ = differences(state.made_with, made_with)
    return {"start_step": state.step, "differences": [*differ, *([] if repeats_sums() else [SUMS_DIFFER])]}
