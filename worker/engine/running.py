"""The life of one engine process: start it, wait until it answers, load its adapters, stop it."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from app.kit import processes, storage
from app.kit.database import utc_now
from app.models.inspection import added_tokens
from app.models.parsers import reasoning_parser, tool_parser
from app.settings import Settings
from worker.engine import client, rows
from worker.engine.protocol import EngineError, InferenceEngine, Launch
from worker.engine.rows import WantedAdapter, WantedEngine

log = logging.getLogger(__name__)

SECRET_WORDS = frozenset({"TOKEN", "SECRET", "PASSWORD", "PASSWD", "PGPASSWORD", "CREDENTIALS", "KEY", "HEADERS"})

START_SECONDS = 900.0
STOP_SECONDS = 5.0
LOG_LINES = 12
# The line before the output of each start of an engine.
START_MARK = "--- Burnish starts the engine at"


@dataclass
class Running:
    """An engine that is being started, runs, or is being stopped. One action on it at a time: `action`, in a thread."""

    model_id: str
    generation: int
    needed_bytes: int
    process: subprocess.Popen[bytes] | None = None
    url: str | None = None
    features: dict[str, Any] = field(default_factory=dict)
    ready_at: float | None = None
    loaded: set[str] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    action: Future[Any] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no action is under way."""
        return self.action is None or self.action.done()

    @property
    def is_dead(self) -> bool:
        """Whether its process ended."""
        return self.process is not None and self.process.poll() is not None


def model_folder(kind: str, location: str | None) -> Path:
    """The local folder of a model's files. Raises `EngineError` where they are gone."""
    try:
        path = Path(location or "") if kind == "base" else storage.fetch_folder(location or "")
    except Exception as error:  # gone, or the store cannot be reached: this model's trouble, not the other engines'
        message = f"The model's files at {location!r} cannot be read: {error}"
        raise EngineError("model_unreadable", message, "Ask for it again, or train it again.") from error
    if location and path.is_dir():
        return path
    raise EngineError("model_unreadable", f"The model's files are not at {location!r}.", "Register or train it again.")


def bring_up(running: Running, wanted: WantedEngine, engine: InferenceEngine, settings: Settings) -> None:
    """Start the engine and return once it is published as ready, with every wanted adapter loaded again.

    Raises `EngineError` when it cannot be started; its process is gone then.
    """
    model_id = running.model_id
    try:
        path = model_folder(wanted.kind, wanted.location)
        port = _free_port()
        launch = _launch(wanted, path, port, settings)
        running.features = engine.features(launch, settings)
        log_file = log_path(settings, model_id)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("a") as log_output:
            log_output.write(f"{START_MARK} {utc_now():%Y-%m-%dT%H:%M:%SZ}\n")
        running.process = processes.spawn(
            engine.command(launch, settings),
            grace_seconds=STOP_SECONDS,
            env=_without_secrets(engine.environment(settings)),
            log=log_file,
        )
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(running, url, log_file)
        running.url = url
        load_adapters(running, rows.read_adapters(model_id), publish=False)
        size = resident_bytes(running)
        if not rows.publish_engine(model_id, url, running.generation, size, running.features, running.loaded):
            raise EngineError("model_gone", f"The model {model_id} was deleted while its engine started.")
        running.ready_at = time.monotonic()
    except BaseException:
        shut_down(running)
        raise


def load_adapters(running: Running, adapters: list[WantedAdapter], *, publish: bool = True) -> None:
    """Load these adapters and, with `publish`, write which are; what is loaded and no longer wanted is unloaded.

    An adapter that is refused gets an `error` in its row and keeps nothing else from being served. When the engine does
    not answer, `EngineError` `engine_unreachable` is raised.
    """
    assert running.url is not None
    for name in running.loaded - {adapter.model_id for adapter in adapters}:
        client.unload_adapter(running.url, name)
        running.loaded.discard(name)
    for adapter in adapters:
        if adapter.failed:
            continue
        try:
            if adapter.model_id not in running.loaded:
                client.load_adapter(running.url, adapter.model_id, model_folder("adapter", adapter.location))
                running.loaded.add(adapter.model_id)
            if publish and adapter.generation != running.generation:
                rows.set_adapter(adapter.model_id, running.generation)
        except EngineError as error:
            if error.code == "engine_unreachable":
                raise
            rows.set_adapter(adapter.model_id, running.generation, error.body())


def shut_down(running: Running) -> None:
    """End the engine's process and everything it started."""
    running.stopping.set()
    if running.process is not None:
        processes.stop(running.process, STOP_SECONDS)


def resident_bytes(running: Running) -> int:
    """Memory of the engine's processes: what is theirs alone, so that shared pages do not count three times."""
    total = 0
    try:
        guard = psutil.Process(running.process.pid if running.process else -1)
        for process in guard.children(recursive=True):
            total += process.memory_full_info().uss
    except (psutil.Error, ValueError):
        pass
    return total


def log_path(settings: Settings, model_id: str) -> Path:
    """Where an engine's output goes. Each start appends to it, after a line that begins with `START_MARK`."""
    return settings.home.resolve() / "logs" / f"engine-{model_id}.log"


def log_tail(path: Path) -> str:
    """The last lines of an engine's log, all of its latest start."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = text.rpartition(START_MARK)[2].splitlines()[1:] if START_MARK in text else text.splitlines()
    return "\n".join([line.rstrip() for line in lines if line.strip()][-LOG_LINES:])


def _wait_until_healthy(running: Running, url: str, log_file: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not client.is_healthy(url):
        if running.stopping.is_set():
            raise EngineError("engine_stopped", "The engine was stopped while it started.")
        if running.is_dead:
            code = running.process.returncode if running.process else None
            raise EngineError(
                "engine_failed",
                f"The engine ended with exit code {code} before it was ready. The last lines of its log:\n{log_tail(log_file)}",
                f"The whole log is {log_file}.",
            )
        if time.monotonic() > deadline:
            raise EngineError(
                "engine_timeout",
                f"The engine was not ready after {START_SECONDS:.0f} s. The last lines of its log:\n{log_tail(log_file)}",
                f"The whole log is {log_file}.",
            )
        running.stopping.wait(0.1)


def _launch(wanted: WantedEngine, path: Path, port: int, settings: Settings) -> Launch:
    """What the engine is to serve, with the parsers that fit the chat template and the tokenizer."""
    template, tokens = wanted.chat_template, added_tokens(path)
    return Launch(
        wanted.model_id,
        path,
        port,
        _template_file(wanted, settings),
        own_code=wanted.own_code,
        tool_parser=tool_parser(template, tokens),
        reasoning_parser=reasoning_parser(template, tokens),
    )


def _template_file(wanted: WantedEngine, settings: Settings) -> Path | None:
    """The chat template that the row has instead of the model's own, as a file, which is how engines take one."""
    if wanted.chat_template is None:
        return None
    path = settings.home.resolve() / "engines" / f"{wanted.model_id}.jinja"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted.chat_template)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _without_secrets(environment: dict[str, str]) -> dict[str, str]:
    """The settings, and whatever else is named like a credential, are no engine's business: models' code may run there."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("BURNISH_") and not SECRET_WORDS.intersection(name.upper().split("_"))
    }
