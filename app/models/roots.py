"""Which directories of this machine a model may be registered from."""

from __future__ import annotations

from pathlib import Path

from app.kit import storage
from app.kit.errors import InvalidValue
from app.models.folders import bad_source
from app.projects.access import needs_key
from app.settings import folders, get_settings


def resolve(source: str) -> Path:
    """The directory that `source` leads to, every link followed. Raises `InvalidValue` if it leads nowhere."""
    try:
        return Path(source).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself; a NUL character
        raise bad_source(Path(source), f"cannot be read: {error}", "Give the path of a directory.") from error


def require_allowed(folder: Path, source: str) -> None:
    """Raises `InvalidValue` if there are keys and `folder`, which `source` led to, is not below one of the operator's roots.

    Without keys only people on this machine reach the service, and any directory will do. With keys the service's own
    files are refused below a root too, since they hold what all projects own. Nothing of `folder` is looked at here: a
    refusal must not tell what exists on the machine.
    """
    if not needs_key():
        return
    roots = folders(get_settings().model_roots)
    private = any(folder.is_relative_to(own) or own.is_relative_to(folder) for own in storage.own_folders())
    if private or not any(folder.is_relative_to(root.resolve()) for root in roots):
        below = f"Give a directory below {' or '.join(map(str, roots))}" if roots else "Give a model of a hub"
        raise InvalidValue(
            f"Models may not be registered from the directory '{source}'.",
            param="source",
            code="source_not_allowed",
            hint=f"{below}, or let the operator name a folder above it in BURNISH_MODEL_ROOTS.",
        )
