"""One attempt at one job: claim, spawn the trainer, heartbeat, record, stop, publish. Nothing here is lost with the process:
the lease runs out, and the job runs again."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import queue
import shutil
import threading
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from app.datasets.service import rows_path
from app.datasets.tables import Dataset
from app.jobs import attempts, checkpoints, logs, reward_models
from app.jobs.spec import JobSpec, TrainerSpec
from app.jobs.tables import Job
from app.kit import storage, tracing
from app.kit.database import reading, writing
from app.kit.leases import LeaseLost
from app.kit.processes import stop
from app.models.bases import foundation, weights_folder
from app.models.own_code import runs_own_code
from app.models.tables import Model
from app.settings import get_settings
from worker import gpu_check, trainers
from worker.fitness import unfit
from worker.log_tail import log_file, next_lines
from worker.memory import MemoryWatch
from worker.phases import Phases
from worker.publish import DeployFailed, deploy, publish
from worker.slots import Slots
from worker.tensorboard import Board
from worker.trainer.failures import OUT_OF_MEMORY_HINT, Failure, of_the_machine

log = logging.getLogger(__name__)

# How often the lease is renewed, the wanted state read and what the trainer said written down.
BEAT_SECONDS = 0.5
FINISHED, FAILED, STOPPED = 0, 1, 3  # the trainer's exit codes


# Why an attempt is stopped → what becomes of its job.
STOPPED_BY = {
    "cancel": attempts.cancelled,
    "pause": attempts.paused,
    "time": attempts.ran_out,
    "shutdown": attempts.hand_over,
}

# Codes of failures that another attempt, perhaps elsewhere, may be spared.
LOSSES = frozenset(
    {
        "trainer_died",
        "killed_for_memory",
        "disk_full",
        "gpu_failed",
        "gpu_busy",
        "checkpoint_unreadable",
        "checkpoint_read_failed",
    }
)


class Stop(Exception):
    """The attempt is to end before its work is done: `why` is one of `STOPPED_BY`."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def workspaces() -> Path:
    """The folder of the attempts' folders on this machine."""
    return get_settings().home.resolve() / "work"


def train_next(slots: Slots, shutting_down: threading.Event) -> bool:
    """Runs one attempt at the first job in line. False where there was none to claim, or this worker may claim none."""
    if reason := unfit(slots):
        log.warning("no job is claimed: %s", reason)
        return False
    job = slots.claim()
    if job is None:
        return False
    log.info("%s: attempt %d begins", job.id, job.attempt)
    workspace = workspaces() / f"{job.id}-{job.attempt}"
    try:
        with tracing.tracer.start_as_current_span(
            "attempt",
            context=tracing.continued(job.traceparent),
            attributes={"burnish.job": job.id, "burnish.attempt": job.attempt},
        ):
            _attempt(job, slots, workspace, Beat(job, shutting_down))
    except LeaseLost:
        log.warning("%s: attempt %d was taken over", job.id, job.attempt)
    except Exception as error:
        log.exception("%s: attempt %d failed in its supervisor", job.id, job.attempt)
        _end_after_fault(job, error)
    finally:
        slots.give_back(job)
        shutil.rmtree(workspace, ignore_errors=True)
        log.info("%s: attempt %d has ended", job.id, job.attempt)
    return True


def _end_after_fault(job: Job, error: Exception) -> None:
    cause = of_the_machine(error)
    if cause is None or cause.code not in LOSSES:
        cause = Failure("worker_fault", "A fault in the worker; its log has the details.", "Look into its log.")
    try:
        with writing() as session:
            attempts.lose(session, attempts.hold(session, job), cause.code, cause.message, cause.hint)
    except (LeaseLost, DBAPIError):
        log.warning("%s: left to the reconciler", job.id)


class Beat:
    """The heartbeat: renews the lease, writes what happened, and raises `Stop` when the attempt is not wanted any more."""

    def __init__(self, job: Job, shutting_down: threading.Event) -> None:
        self.job, self.shutting_down = job, shutting_down
        self.began = self.renewed = time.monotonic()
        self.may_run = math.inf if job.max_seconds is None else job.max_seconds - attempts.seconds_used(job)
        self.unwritten: list[dict[str, Any]] = []
        self.log, self.logged = log_file(job), 0  # so many bytes of it are written

    def __call__(self, events: list[dict[str, Any]] | None = None) -> None:
        """Raises what `write` does, and `Stop`."""
        wanted = self.write(events or [])
        if time.monotonic() - self.began > self.may_run:
            wanted = wanted or "time"
        if wanted or self.shutting_down.is_set():
            raise Stop(wanted or "shutdown")

    def write(self, events: list[dict[str, Any]]) -> str | None:
        """Why the attempt is to stop, as its job wants it: `cancel`, `pause` or not at all.

        Raises `LeaseLost`, also when the database was away for as long as the lease.
        """
        self.unwritten += events
        lines, logged = next_lines(self.log, self.logged)
        try:
            with writing() as session:
                row = attempts.heartbeat(session, self.job)
                attempts.record(session, row, self.unwritten)
                logs.add(session, row, lines)
                wanted = "cancel" if row.cancel_requested else "pause" if row.pause_requested else None
        except (OperationalError, InterfaceError) as error:  # away; anything else would fail again
            if time.monotonic() - self.renewed > get_settings().lease_seconds:
                raise LeaseLost("the database was away for longer than the lease") from error
            log.warning("%s: heartbeat failed (%s); trying again", self.job.id, error)
            return None
        self.renewed, self.unwritten, self.logged = time.monotonic(), [], logged
        return wanted

    def write_last_lines(self) -> None:
        """Writes what a trainer that is gone said last; without the database it stays in the file. Raises `LeaseLost`."""
        try:
            while True:
                lines, logged = next_lines(self.log, self.logged, ended=True)
                if logged == self.logged:
                    return
                with writing() as session:
                    logs.add(session, attempts.hold(session, self.job), lines)
                self.logged = logged
        except (OperationalError, InterfaceError) as error:
            log.warning("%s: the last lines of its log were not written: %s", self.job.id, error)


def _attempt(job: Job, slots: Slots, workspace: Path, beat: Beat) -> None:
    """Trains unless an earlier attempt did, then deploys. Every way out but a lost lease ends the attempt in the database."""
    failure: dict[str, Any] | None = None
    try:
        with reading() as session:
            model = attempts.published(session, job)
        if model is None:
            failure = _train(job, slots, workspace, beat)
            model = publish(job, workspace / "out") if failure is None else None
        else:
            with writing() as session:
                attempts.recall(session, attempts.hold(session, job))
        if model is not None:
            with tracing.tracer.start_as_current_span("deploy"):
                deploy(job, model, beat)
    except Stop as stop:
        with writing() as session:
            row = attempts.hold(session, job)
            STOPPED_BY[stop.why](session, row)
    except DeployFailed as error:
        failure = {"code": "deploy_failed", "message": str(error), "hint": error.hint}
    if failure is not None:
        tracing.fail(failure["message"])
        if failure["code"] == "gpu_failed":
            gpu_check.suspect(slots, job, failure["message"])
        with writing() as session:
            row = attempts.hold(session, job)
            if failure["code"] == "checkpoint_unreadable":
                checkpoints.forget_newest(session, row)
            end = attempts.lose if failure["code"] in LOSSES else attempts.fail
            end(session, row, failure["code"], failure["message"], failure.get("hint"))


def _train(job: Job, slots: Slots, workspace: Path, beat: Beat) -> dict[str, Any] | None:
    """Runs the trainer to its end. Returns why it failed, or None. Raises `Stop` and `LeaseLost` with the trainer gone."""
    shutil.rmtree(workspace, ignore_errors=True)
    (workspace / "out").mkdir(parents=True)
    gpus = slots.gpus_of(job)
    try:
        with attempts.renewing(job):
            spec = _trainer_spec(job, gpus)
    except FileNotFoundError as error:
        return {
            "code": "model_unreadable",
            "message": f"{error.filename or error} is not there any more.",
            "hint": None,
        }
    (workspace / "spec.json").write_text(spec.model_dump_json(indent=2), encoding="utf-8")
    trainer = trainers.start(workspace / "spec.json", workspace / "out", beat.log, gpus)
    memory, board = MemoryWatch(trainer.pid), Board(job)
    said: queue.Queue[dict[str, Any]] = queue.Queue()
    steps = threading.Event()  # its first step is written down at once: somebody waits for it
    reader = threading.Thread(target=_read_events, args=(trainer, said, steps, Phases()), daemon=True)
    reader.start()
    failed: dict[str, Any] | None = None
    loading = True
    try:
        while reader.is_alive() or not said.empty():
            if loading:
                steps.wait(BEAT_SECONDS)
            else:
                reader.join(BEAT_SECONDS)
            memory.look()
            events = [said.get_nowait() for _ in range(said.qsize())]
            failed = next((event for event in events if event["type"] == "failed"), failed)
            board.write(events)
            beat(events)
            if loading and any(event["type"] == "step" for event in events):
                loading = False
                trainers.keep_warm(slots)
            _keep_checkpoints(job, events, beat)
    except Stop as stopped:
        stop(trainer, get_settings().stop_grace_seconds)
        if stopped.why != "cancel":  # whoever goes on does so from the step that it ended with
            reader.join()
            events = [said.get_nowait() for _ in range(said.qsize())]
            board.write(events)
            beat.write(events)
            _keep_checkpoints(job, events, beat)
        raise
    finally:
        code = stop(trainer, get_settings().stop_grace_seconds)
        board.close()
        beat.write_last_lines()
        if loading and not beat.shutting_down.is_set():
            trainers.keep_warm(slots)
    if code == FINISHED:
        return None
    if failed is None and (ran_out := memory.ran_out()):
        return {"code": "killed_for_memory", "message": ran_out, "hint": OUT_OF_MEMORY_HINT}
    return failed or {"code": "trainer_died", "message": _last_words(code, beat.log)}


def _keep_checkpoints(job: Job, events: list[dict[str, Any]], beat: Beat) -> None:
    """Stores the checkpoints that the trainer told of; a row follows once all that came before it is written. One that
    cannot be stored is left out: a crash costs more then. Raises `LeaseLost`."""
    for event in events:
        if event["type"] != "checkpoint" or beat.unwritten:
            continue
        folder = Path(event["path"])
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        try:
            with attempts.renewing(job):
                storage.put_folder(folder, checkpoints.storage_key(job, event["step"]))
            with writing() as session:
                held = attempts.hold(session, job)
                dropped = checkpoints.add(session, held, event["step"], size, event["validation_loss"])
            checkpoints.drop(dropped)
        except (OSError, OperationalError, InterfaceError) as error:
            log.warning("%s: the checkpoint of step %d was not kept: %s", job.id, event["step"], error)


def _trainer_spec(job: Job, gpus: list[str]) -> TrainerSpec:
    """Raises `FileNotFoundError` where the base model's folder, a reward model or the rows are gone."""
    with reading() as session:
        base, dataset = session.get_one(Model, job.base_model_id), session.get_one(Dataset, job.dataset_id)
        validation = session.get_one(Dataset, job.validation_dataset_id) if job.validation_dataset_id else None
        replay = session.get_one(Dataset, job.replay_dataset_id) if job.replay_dataset_id else None
        spec = JobSpec.model_validate(job.spec)
        judges = reward_models.fetch(session, spec)
    adapter = storage.fetch_folder(str(base.location)) if base.kind == "adapter" else None
    folder, under = weights_folder(base), foundation(base)
    provenance = {
        "job": job.id,
        "base_model": under.name,
        "base_model_id": under.id,
        "base_source": under.source,
        "base_revision": under.facts.get("revision"),
        "dataset": _origin(dataset),
    }
    if replay:
        provenance["replay"] = _origin(replay)
    if base.kind != "base":
        provenance["fine_tune"] = {"id": base.id, "name": base.name, "sha256": _weights_hash(adapter or folder)}
    return TrainerSpec(
        job=job.id,
        attempt=job.attempt,
        spec=spec,
        base_model=str(folder),
        chat_template=spec.chat_template or base.chat_template,
        own_code=runs_own_code(base),
        adapter=str(adapter) if adapter else None,
        resume_from=checkpoints.fetch_newest(job),
        rows=str(rows_path(dataset)),
        validation_rows=str(rows_path(validation)) if validation else None,
        replay_rows=str(rows_path(replay)) if replay else None,
        threads=get_settings().trainer_threads,
        gpus=gpus,
        processes=max(1, len(gpus)),
        halved=attempts.killed_for_memory(job),
        reward_models=judges,
        provenance=provenance,
    )


def _origin(dataset: Dataset) -> dict[str, Any]:
    return {"id": dataset.id, "name": dataset.name, "sha256": dataset.file.sha256}


def _weights_hash(folder: Path) -> str:
    """The SHA-256 of a fine-tune's weights: of all its safetensors files, by name."""
    hashed = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            while part := stream.read(2**20):
                hashed.update(part)
    return hashed.hexdigest()


def _read_events(
    trainer: Popen[bytes], said: queue.Queue[dict[str, Any]], steps: threading.Event, phases: Phases
) -> None:
    """Passes on what the trainer says until it has ended; `steps` is set by its first step, or its end."""
    assert trainer.stdout is not None
    with trainer.stdout:
        for line in trainer.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                log.warning("not an event from the trainer: %r", line[:200])
                continue
            phases.see(event)
            said.put(event)
            if event["type"] == "step":
                steps.set()
    phases.end()
    steps.set()


def _last_words(code: int, errors: Path) -> str:
    """Why a trainer ended that said nothing of it itself."""
    tail = " | ".join(errors.read_text(errors="replace").strip().splitlines()[-5:]) or "(none)"
    if code in (-9, 128 + 9):  # the guard was killed, or what it guards
        return f"The trainer was killed (SIGKILL), and not for want of memory. Its last lines: {tail}"
    return f"The trainer ended with exit code {code}. Its last lines: {tail}"
