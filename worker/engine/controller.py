"""Keeps the engines that run equal to the engines that are wanted.

The rows of `engines` and `engine_adapters` say what is wanted; the API writes them and reads `status` and `url`. Each
`tick` compares them with what runs and begins at most one action per engine, in a thread, so that nothing slow (a start,
a load, a stop) keeps another engine waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

from app.kit.database import utc_now
from app.settings import Settings
from worker.engine import rows
from worker.engine import running as life
from worker.engine.choice import choose_engine, engine_for
from worker.engine.protocol import EngineError, InferenceEngine
from worker.engine.rows import WantedAdapter, WantedEngine
from worker.engine.running import Running

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
USED_WITHIN = timedelta(minutes=15)
# An engine used this lately is probably answering: it is spared, until the engine that needs its room has waited long.
BUSY_SECONDS, PATIENCE_SECONDS = 12.0, 30.0
# How long a start waits for memory that no engine holds before it fails.
ROOM_SECONDS = 30.0
MAX_DEATHS = 3
STEADY_SECONDS = 60.0
MEASURE_SECONDS = 10.0


@dataclass
class State:
    """What the controller knows beside the database."""

    settings: Settings
    engine: InferenceEngine
    threads: ThreadPoolExecutor
    running: dict[str, Running] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    not_before: dict[str, float] = field(default_factory=dict)
    waiting_since: dict[str, float] = field(default_factory=dict)
    measured_at: float = 0.0


def run(settings: Settings, stop: threading.Event) -> None:
    """Keep engines as wanted until `stop` is set, then end them all (within 10 s)."""
    threads = ThreadPoolExecutor(max_workers=4 * settings.max_engines, thread_name_prefix="engine")
    state = State(settings, choose_engine(settings), threads)
    recovered = False
    while not stop.is_set():
        try:
            if not recovered:
                # The guards of an earlier controller ended its engines with it: nothing that a row says runs is alive.
                rows.forget_running(USED_WITHIN)
                recovered = True
            tick(state)
        except Exception:
            # A database that is away comes back; whatever it was, engines that serve go on serving meanwhile.
            log.exception("the engine controller's round failed")
            stop.wait(2.0)
        stop.wait(POLL_SECONDS)
    close(state)


def tick(state: State) -> None:
    """One comparison of what is wanted with what runs."""
    engines = rows.read_engines()
    adapters = rows.read_adapters()
    for model_id, running in list(state.running.items()):
        _look_after(state, running, engines.get(model_id), [a for a in adapters if a.engine_id == model_id])
    for wanted in sorted(engines.values(), key=lambda row: row.last_used_at, reverse=True):
        if wanted.model_id not in state.running:
            _consider(state, wanted, engines)
    _measure(state)


def close(state: State) -> None:
    """End every engine; the next controller starts those again that were used lately."""
    for running in state.running.values():
        running.stopping.set()
    ends = [state.threads.submit(life.shut_down, running) for running in state.running.values()]
    for end in ends:
        end.exception()
    state.threads.shutdown(wait=True)
    state.running.clear()
    rows.forget_running(USED_WITHIN)


def _look_after(state: State, running: Running, row: WantedEngine | None, adapters: list[WantedAdapter]) -> None:
    """One engine that has a process: settle the action that ended, then begin the next that is due."""
    if row is None or row.status in ("stopped", "failed"):
        running.stopping.set()  # also ends a start that is under way
    if not running.is_idle:
        return
    error = running.action.exception() if running.action else None
    running.action = None
    if running.stopping.is_set() or running.ready_at is None:
        if running.process is not None and not running.is_dead:
            running.action = state.threads.submit(life.shut_down, running)
            return
        _settle_end(state, running, error)
    elif running.is_dead:
        _settle_death(state, running)
    elif row is not None and row.status != "ready":
        # Wanted again by someone who did not know that it runs.
        size = life.resident_bytes(running)
        rows.publish_engine(
            running.model_id, running.url or "", running.generation, size, running.features, running.loaded
        )
    elif _due(running, adapters):
        if error is not None:
            log.warning("the adapters of %s were not loaded: %s", running.model_id, error)
        running.action = state.threads.submit(life.load_adapters, running, adapters)


def _due(running: Running, adapters: list[WantedAdapter]) -> bool:
    """Whether an adapter is to be loaded or unloaded."""
    unwanted = running.loaded - {adapter.model_id for adapter in adapters}
    return bool(unwanted) or any(a.generation != running.generation and not a.failed for a in adapters)


def _settle_end(state: State, running: Running, error: BaseException | None) -> None:
    """A start that failed, or an engine that was stopped: its process is gone."""
    del state.running[running.model_id]
    if running.ready_at is not None or (
        isinstance(error, EngineError) and error.code in ("engine_stopped", "model_gone")
    ):
        rows.set_engine(running.model_id, "stopped", if_status=("starting", "ready"))
        return
    if not isinstance(error, EngineError):
        log.error("the engine of %s was not started", running.model_id, exc_info=error)
        error = EngineError(
            "engine_failed", f"The engine could not be started: {error!r}", "The controller's log has more."
        )
    rows.set_engine(running.model_id, "failed", error=error.body())


def _settle_death(state: State, running: Running) -> None:
    """An engine that served has died: it is wanted again, later each time, until it has died too often in a row."""
    model_id = running.model_id
    del state.running[model_id]
    if time.monotonic() - (running.ready_at or 0.0) > STEADY_SECONDS:
        state.deaths[model_id] = 0
    state.deaths[model_id] += 1
    deaths = state.deaths[model_id]
    code = running.process.returncode if running.process else None
    log.warning("the engine of %s died with exit code %s (%d in a row)", model_id, code, deaths)
    if deaths < MAX_DEATHS:
        state.not_before[model_id] = time.monotonic() + 2.0 * (deaths - 1)
        rows.set_engine(model_id, "wanted")
        return
    del state.deaths[model_id]
    path = life.log_path(state.settings, model_id)
    message = f"The engine died {deaths} times in a row, last with exit code {code}. The last lines of its log:\n"
    hint = f"The whole log is {path}. Exit code 137 often means that the machine ran out of memory."
    rows.set_engine(model_id, "failed", error=EngineError("engine_died", message + life.log_tail(path), hint).body())


def _consider(state: State, wanted: WantedEngine, engines: dict[str, WantedEngine]) -> None:
    """An engine without a process: start it if it is wanted and there is room, else make room."""
    model_id, now = wanted.model_id, time.monotonic()
    if wanted.status in ("starting", "ready"):  # its end could not be written when it came
        rows.set_engine(model_id, "wanted", if_status=(wanted.status,))
    if wanted.status != "wanted":
        state.waiting_since.pop(model_id, None)
        return
    if now < state.not_before.get(model_id, 0.0):
        return
    waited = now - state.waiting_since.setdefault(model_id, now)
    try:
        engine = engine_for(wanted, state.engine, state.settings)
        needed = engine.memory_needed(life.model_folder(wanted.kind, wanted.location), state.settings)
        if not _has_room(state, engine, needed):
            _make_room(state, engine, needed, waited, engines)
            return
    except EngineError as error:
        state.waiting_since.pop(model_id, None)
        rows.set_engine(model_id, "failed", error=error.body(), if_status=("wanted",))
        return
    del state.waiting_since[model_id]
    if rows.set_engine(model_id, "starting", if_status=("wanted",)):
        running = state.running[model_id] = Running(model_id, wanted.generation + 1, needed)
        running.action = state.threads.submit(life.bring_up, running, wanted, engine, state.settings)


def _has_room(state: State, engine: InferenceEngine, needed: int) -> bool:
    """Whether one more engine may run, and its memory is free beside what starting engines are about to take."""
    if len(state.running) >= state.settings.max_engines:
        return False
    promised = sum(each.needed_bytes for each in state.running.values() if each.ready_at is None)
    return engine.memory_available(state.settings) - promised >= needed


def _make_room(
    state: State, engine: InferenceEngine, needed: int, waited: float, engines: dict[str, WantedEngine]
) -> None:
    """Stop the engine that was used least recently, unless one is starting or ending, which may be room enough.

    Raises `EngineError` when no engine is left to stop and the memory has not come free for a while.
    """
    if any(each.ready_at is None or each.stopping.is_set() for each in state.running.values()):
        return
    ready = [row for model_id, row in engines.items() if model_id in state.running]
    oldest = min(ready, key=lambda row: row.last_used_at, default=None)
    if oldest is not None:
        idle = (utc_now() - oldest.last_used_at).total_seconds()
        if idle > BUSY_SECONDS or waited > PATIENCE_SECONDS:
            log.info("stopping the engine of %s, unused for %.0f s, to make room", oldest.model_id, idle)
            rows.set_engine(oldest.model_id, "stopped")
            state.running[oldest.model_id].stopping.set()
    elif waited > ROOM_SECONDS:
        free = engine.memory_available(state.settings)
        raise EngineError(
            "engine_memory",
            f"The engine needs about {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free.",
            "End other work on this machine, or wait for a training to finish, and ask again.",
        )


def _measure(state: State) -> None:
    """Write now and then how much memory each engine takes."""
    if time.monotonic() - state.measured_at < MEASURE_SECONDS:
        return
    state.measured_at = time.monotonic()
    ready = [each for each in state.running.values() if each.ready_at is not None and not each.is_dead]
    if ready:
        rows.set_resident({each.model_id: life.resident_bytes(each) for each in ready})
