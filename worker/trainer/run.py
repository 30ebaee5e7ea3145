"""A run from spec to artifacts, top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pydantic import ValidationError
from transformers import set_seed

from app.jobs import combinations
from app.jobs.estimate import Memory, count_steps, memory, shape_of
from app.jobs.hyperparameters import Reinforcement
from app.jobs.spec import TrainerSpec
from app.models.layers import modules_of
from worker.trainer import artifacts, attention, last_block, ranks, scorecard, sharding
from worker.trainer.base import Base, onto_device, own_dtype, random_model
from worker.trainer.checkpoints import Checkpoints, RunState, differences, read_state
from worker.trainer.data import dataset
from worker.trainer.data.tokenizer import load_tokenizer
from worker.trainer.data.tokenizer import pad_id as pad_id_of
from worker.trainer.determinism import SUMS_DIFFER, be_deterministic, repeats_sums
from worker.trainer.events import Emit
from worker.trainer.failures import Failure, of_the_machine
from worker.trainer.loop import train
from worker.trainer.methods import METHODS, Method
from worker.trainer.micro_batches import MicroBatches, micro_batch_tokens
from worker.trainer.outcome import Writer
from worker.trainer.precision import compute_dtype, compute_in
from worker.trainer.proof import Proof, find_score
from worker.trainer.reference import with_reference
from worker.trainer.stages import STAGES, packed
from worker.trainer.stages.rewards import judge_by
from worker.trainer.stages.rl import Rollouts
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
    """Trains as the spec says and writes OUT/. Raises `Failure`, and `Stopped` at a SIGTERM. Of several processes each does
    the same until something is written, which the first one does."""
    began = perf_counter()
    settings, method = spec.spec.hyperparameters, METHODS[spec.spec.method.type]
    stage = method.of_stage(STAGES[spec.spec.stage])
    be_deterministic(settings.deterministic)
    compute_in(settings.precision, may_scale=settings.sharding == "none")
    out.mkdir(parents=True, exist_ok=True)
    if spec.threads > 0:
        torch.set_num_threads(spec.threads)

    emit("phase", phase="loading")
    resume_from = Path(spec.resume_from) if spec.resume_from else None
    resumed = read_state(resume_from) if resume_from else None
    tokenizer = load_tokenizer(spec.base_model, spec.chat_template, spec.own_code)
    pad_id = pad_id_of(tokenizer)
    data = dataset.read(spec, tokenizer)
    dataset.check(data, settings.max_length, spec.spec.check.max_cut_share)
    dataset.warn(data, settings.max_length, emit)
    goes_on = combinations.trains_adapter(spec.spec.stage, spec.spec.method)
    makes = combinations.STAGES[spec.spec.stage].makes
    base = Base(spec.base_model, spec.own_code, makes, pad_id, adapter=None if goes_on else spec.adapter)
    loaded = _load(spec, base, method)
    model, dtype = loaded.model, loaded.dtype
    if settings.sharding == "full" and ranks.count() > 1:
        sharding.shard(model)
    model = onto_device(model)
    attention.choose(model)
    last_block.narrow(model)
    stop_ids = dataset.stop_token_ids(
        data.train, tokenizer, spec.spec.template_arguments, settings.max_length, loaded.stops_at, emit
    )
    # A run that goes on measures as the first attempt did, and then trains on with what that had come to.
    began_with = resumed.made_with["micro_batch_tokens"] if resumed else micro_batch_tokens()
    halved = 0 if torch.cuda.is_available() else spec.halved  # the kernel gives and takes the machine's memory alone
    more = max(0, halved - (resumed.halved if resumed else 0))
    micro_batches = MicroBatches(max(1, began_with >> more), emit, halved)
    is_language_model = base.makes == "language model"
    proof = Proof(model, data.train, pad_id, micro_batches) if is_language_model else None
    packs = packed.is_wanted(spec, model)
    stage = replace(stage, batches=packed.batches) if packs else stage
    if spec.adapter and goes_on:
        try:
            method.load(model, Path(spec.adapter))
        except (OSError, ValueError) as error:
            message = f"The adapter in {spec.adapter} cannot be trained further: {error}"
            failure = Failure("model_unreadable", message, "Train from its base model instead.")
            raise (of_the_machine(error) or failure) from error
    ranks.make_same(model)
    train_items, validation_items = stage.prepare(data.train), stage.prepare(data.validation)
    if isinstance(settings, Reinforcement):
        judge = judge_by(settings.reward, spec.reward_models)
        trained = (
            {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad} if settings.beta else {}
        )
        rollouts = Rollouts(tokenizer, pad_id, stop_ids, settings, judge, trained)
        stage = replace(stage, begin_step=rollouts.begin_step)
    if stage.needs_reference(settings) or spec.spec.check.scorecard:
        emit("phase", phase="measuring")
    if stage.needs_reference(settings):
        both = with_reference(model, [*train_items, *validation_items], pad_id, micro_batches)
        train_items, validation_items = both[: len(train_items)], both[len(train_items) :]
    asked, untrained = None, dict[str, float | None]()
    if spec.spec.check.scorecard:
        # Before a checkpoint is loaded: the model is what training began with in an attempt that goes on, too.
        ends = _ends(stop_ids, tokenizer, loaded.stops_at)
        asked = scorecard.choose(
            spec.spec.stage, settings, data.train, data.validation, validation_items, tokenizer, ends, pad_id
        )
        untrained = scorecard.look(model, asked, micro_batches) if asked else {}

    most = micro_batches.tokens
    made_with = artifacts.made_with(dtype, compute_dtype(), attention.attention_of(model))
    made_with |= {"packed": packs, "micro_batch_tokens": most, "processes": ranks.count()}
    if resumed:
        micro_batches.tokens = min(most, max(1, (resumed.micro_batch_tokens or began_with) >> more))
    if more:
        why = "The kernel ended an earlier attempt for want of memory."
        emit("warning", message=f"{why} It goes on with micro-batches of up to {micro_batches.tokens} padded tokens.")

    every = None if settings.checkpoint_every == "auto" else settings.checkpoint_every
    examples = [example for item in data.train for example in item.examples]
    summary = _resumption(resumed, made_with) | {
        "total_steps": count_steps(len(data.train), settings),
        "rows": data.rows,
        "validation_rows": data.validation_rows,
        "replay_rows": data.replay_rows,
        "cut_rows": data.cut,
        "cut_ends": data.cut_ends,
        "tokens_lost": data.tokens_lost,
        "dropped_rows": data.dropped,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": loaded.parameters,
        "loss_tokens": sum(int(example.loss_mask[1:].sum()) for example in examples),
        "tokens": sum(len(example.token_ids) for example in examples),
        "longest": max(len(example.token_ids) for example in examples),
        "examples": len(data.train),
        "gpus": torch.cuda.device_count() * ranks.count(),
        **{name: made_with[name] for name in ("compute_dtype", "attention", "packed")},
    }
    emit("started", **summary)
    about = {
        "job": spec.job,
        "attempt": spec.attempt,
        "provenance": spec.provenance,
        "spec": spec.spec.model_dump(mode="json"),
        "data": summary,
        "stop_token_ids": stop_ids,
        "modules": loaded.modules,
        "weight_bytes": loaded.parameters * own_dtype(base).itemsize,
        "made_with": made_with,
    }
    writer = Writer(spec, method, base, tokenizer, stop_ids, about)
    checkpoints = Checkpoints(
        out / "checkpoints",
        every,
        resume_from,
        made_with,
        method.KIND,
        writer.save_checkpoint,
        writer.load_checkpoint,
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
            judged_by=spec.spec.validation,
            make_optimizer=lambda model, options: method.optimizer(model, spec.spec.method, options),
            pad_id=pad_id,
            micro_batches=micro_batches,
            estimate=_estimate(spec, model, summary),
            checkpoints=checkpoints,
            emit=emit,
            stop=stop,
        )
    training_seconds = perf_counter() - training_began

    card = None
    if asked is not None:
        emit("phase", phase="measuring")
        card = scorecard.beside(asked, untrained, scorecard.look(model, asked, micro_batches))
    found = proof.find(model) if proof else find_score(model, data.train)
    sharding.collect(model)
    if not ranks.leave():
        return
    artifacts.write_json(out / "proof.json", found)
    writer.save_outcome(model, out, emit)

    result = {
        "steps": outcome.steps,
        "loss": outcome.loss,
        "validation_loss": outcome.validation_loss,
        "best_step": outcome.best_step,
        "best_validation_loss": outcome.best_validation_loss,
        "stopped_early": outcome.stopped_early,
        "training_seconds": round(training_seconds, 3),
        "seconds": round(perf_counter() - began, 3),
    }
    writer.write_manifest(out, result, card)
    for made in out.iterdir():
        if made != checkpoints.folder:  # whose checkpoints are taken away meanwhile
            artifacts.sync(made)
    artifacts.sync_entry(out)
    if card is not None:
        emit("scorecard", **card)
    emit("finished", step=outcome.steps, **{name: value for name, value in result.items() if name != "steps"})


def _ends(stop_ids: list[int], tokenizer: Any, stops_at: Any) -> list[int]:
    """The tokens at any of which an engine would end an answer of the model."""
    own = stops_at if isinstance(stops_at, list) else [stops_at]
    return sorted({*stop_ids, tokenizer.eos_token_id, *own} - {None})


@dataclass(frozen=True)
class _Loaded:
    """A `model` that is ready to be trained; its dtype, parameters and modules (`modules_of`) as they were before; and the token
    or tokens that its answers stop at."""

    model: Any
    dtype: torch.dtype
    parameters: int
    modules: list[str]
    stops_at: Any


def _load(spec: TrainerSpec, base: Base, method: Method) -> _Loaded:
    """Raises `Failure`."""
    settings = spec.spec.hyperparameters
    set_seed(settings.seed)
    loaded = random_model(base) if settings.begin_at_random else method.load_base(base, spec.spec.method)
    dtype, parameters = loaded.dtype, loaded.num_parameters()
    modules = modules_of({name: weight.shape for name, weight in loaded.named_parameters()})
    generation = getattr(loaded, "generation_config", None)  # a reward model has none
    stops_at = generation.eos_token_id if generation is not None else None
    set_seed(settings.seed)
    try:
        model = method.prepare(loaded, spec.spec.method)
    except ValueError as error:
        raise Failure("trainer_error", str(error), "Change the field that it names.") from error
    return _Loaded(model, dtype, parameters, modules, stops_at)


def _estimate(spec: TrainerSpec, model: Any, summary: dict[str, Any]) -> Memory | None:
    """How much memory a step takes at its peak; None where the model's configuration has other names than most."""
    parameters = summary["parameters"]
    shape = shape_of(model.config.to_dict(), parameters)
    if shape is None:
        return None
    is_drawn = isinstance(spec.spec.hyperparameters, Reinforcement)
    return memory(
        spec.spec,
        shape,
        trained=summary["trainable_parameters"],
        longest=spec.spec.hyperparameters.max_length if is_drawn else summary["longest"],
        loss_share=1.0 if is_drawn else summary["loss_tokens"] / summary["tokens"],
        device="cuda" if torch.cuda.is_available() else "cpu",
        compute_bytes=compute_dtype().itemsize,
        processes=ranks.count(),
    )


def _resumption(resumed: RunState | None, made_with: dict[str, Any]) -> dict[str, Any]:
    """From which step the run goes on, and why its bits may not be those of a run that never stopped."""
    if resumed is None:
        return {"start_step": 0, "differences": []}
    differ = differences(resumed.made_with, made_with)
    return {"start_step": resumed.step, "differences": [*differ, *([] if repeats_sums() else [SUMS_DIFFER])]}
