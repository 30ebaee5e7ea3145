"""What lies in a model's folder, before anything of it is opened: regular files only, and nothing from elsewhere."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from app.kit.errors import InvalidValue

MAX_ENTRIES = 10_000
MAX_DEPTH = 16


def check_entries(folder: Path) -> None:
    """Raises `InvalidValue` where something below `folder` is no regular file or directory, or a link that leads out of it.

    Hugging Face's cache is a folder of links into `blobs` beside it: those are followed.
    """
    inside = [folder.resolve(), *_cache_blobs(folder.resolve())]
    for number, path in enumerate(_below(folder)):
        if len(path.parts) - len(folder.parts) > MAX_DEPTH:
            raise bad_source(folder, f"has folders more than {MAX_DEPTH} deep", "Give the directory of one model.")
        if number >= MAX_ENTRIES:
            raise bad_source(folder, f"has more than {MAX_ENTRIES} files", "Give the directory of one model.")
        target = path
        if path.is_symlink():
            try:
                target = path.resolve()
            except RuntimeError:
                raise bad_source(folder, f"has a link to itself, {path.name}", "Put the file itself there.") from None
            if not any(target.is_relative_to(root) for root in inside):
                raise bad_source(folder, f"has a link that leads out of it, {path.name}", "Put the file itself there.")
        try:
            kind = target.lstat().st_mode
        except FileNotFoundError:
            raise bad_source(folder, f"has a link to nothing, {path.name}", "Put the file itself there.") from None
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise bad_source(folder, f"has something that is no file, {path.name}", "Remove it.")


def bad_source(folder: Path, what: str, hint: str) -> InvalidValue:
    """The refusal of a model's folder. Names of files are bytes: what is no text in one is shown by its number."""
    message = f"The source '{folder}' {what}.".encode(errors="backslashreplace").decode()
    return InvalidValue(message, param="source", hint=hint)


def _below(folder: Path) -> Iterator[Path]:
    """Everything below, without following links."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _cache_blobs(folder: Path) -> list[Path]:
    """The folder of blobs that a snapshot in Hugging Face's cache links to: `models--…/snapshots/<commit>`."""
    repository = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return [repository / "blobs"] if is_snapshot else []
