"""Models that are downloaded from hubs, by a child that talks to the hub. What an attempt fetched stays in the hub's cache, where
the next one goes on with it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from sqlalchemy.orm import Session

from app.kit.errors import InvalidValue
from app.kit.sealing import Unreadable
from app.models.own_code import is_allowed
from app.models.service import read_directory
from app.models.tables import Model
from app.secrets.service import reveal
from worker.hubs import HUBS, parse
from worker.preparing import Beat, Event, failure, prepare_next, run_child
from worker.trainers import KEPT_VARIABLES

# Downloads of this process at a time: they share its threads with the reconcilers, which must always find one.
SLOTS = threading.BoundedSemaphore(2)

# What the child may know of the environment: the hubs' own variables (their tokens are its business), the way to them,
# and nothing of the service's settings.
KEPT_PREFIXES = ("LC_", "HF_", "HUGGING", "MODELSCOPE_")
NETWORK_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
OTHER_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "XDG_CACHE_HOME")


def download_next(shutting_down: threading.Event) -> bool:
    """Runs one attempt at the oldest waiting model. False where there is none, or enough downloads run in this process."""
    if not SLOTS.acquire(blocking=False):
        return False
    try:
        return prepare_next("downloading", shutting_down, _fetch, _finish) is not None
    finally:
        SLOTS.release()


def _fetch(model: Model, beat: Beat) -> Event:
    try:
        environment = _environment(model)
    except Unreadable as error:
        return failure("secret_unreadable", f"The project's token cannot be opened: {error}.", "Keep it anew.")
    options = ["--own-code"] if is_allowed(model.source) else []
    command = ["worker.hubs", model.source, *options]
    return run_child(model, beat, "download", "What was downloaded is kept.", command, environment)


def _finish(session: Session, row: Model, ended: Event) -> None:
    try:
        read_directory(row, Path(ended["folder"]))
    except InvalidValue as error:
        # Users know the source, not the folder in the hub library's cache.
        error.message = error.message.replace(ended["folder"], row.source)
        raise
    row.facts = row.facts | {"revision": ended["revision"]}


def _environment(model: Model) -> dict[str, str]:
    """The child's environment; a token that the model's project keeps comes before the machine's."""
    exact = {*KEPT_VARIABLES, *NETWORK_VARIABLES, *map(str.lower, NETWORK_VARIABLES), *OTHER_VARIABLES}
    kept = {name: value for name, value in os.environ.items() if name in exact or name.startswith(KEPT_PREFIXES)}
    hub = HUBS[parse(model.source).hub]
    if (secret := reveal(model.project_id, hub.secret)) is not None:
        kept[hub.token] = secret
    return kept | {"PYTHONUNBUFFERED": "1"}
