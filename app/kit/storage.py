"""The one store of bytes: immutable blobs addressed by their SHA-256, and folders of artifacts under a key of their own.

On a local directory a write is: temporary name, fsync, rename. In an object store a key appears only when its upload is
complete, and a folder counts only once the database has a row for it ("the row is the commit").
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec

from app.settings import get_settings


@lru_cache
def _store() -> tuple[Any, str]:
    """The file system of `BURNISH_STORAGE_URL` and the path of its root."""
    # A cached listing hides what other processes store, and makes a delete of it do nothing.
    filesystem, root = fsspec.core.url_to_fs(get_settings().blobs_url, use_listings_cache=False)
    return filesystem, str(root).rstrip("/")


def _local_root() -> Path | None:
    """The root as a directory, where the store is one on this machine."""
    filesystem, root = _store()
    return Path(root) if "file" in filesystem.protocol else None


def own_folders() -> list[Path]:
    """The directories of this machine that hold what all projects own: the home, and the store if it is a directory."""
    root = _local_root()
    return [get_settings().home.resolve(), *([root.resolve()] if root else [])]


def _incoming() -> Path:
    return (_local_root() or get_settings().home.resolve()) / "incoming"


def _blob_key(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256}"


@contextmanager
def incoming() -> Iterator[Path]:
    """A private directory for what is being received or made; gone afterwards, whatever happened.

    It lies in the local store where there is one, so that what it holds can be renamed into place.
    """
    parent = _incoming()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def reach() -> None:
    """Asks the store for its root. Raises what its library does where it cannot be reached."""
    filesystem, root = _store()
    filesystem.exists(root)


def put_blob(path: Path, sha256: str) -> None:
    """Moves the complete file at `path` (whose hash the caller computed) into the store. Bytes that are there stay as they are."""
    filesystem, root = _store()
    local, key = _local_root(), _blob_key(sha256)
    if local is None:
        if not filesystem.exists(f"{root}/{key}"):
            filesystem.put_file(str(path), f"{root}/{key}")
        return
    target = local / key
    target.parent.mkdir(parents=True, exist_ok=True)
    _sync_file(path)
    os.replace(path, target)
    _sync_directory(target.parent)


def fetch_blob(sha256: str) -> Path:
    """The blob as a local file. Raises `FileNotFoundError` where there is none."""
    return _fetch(_blob_key(sha256))


def is_here(key: str) -> bool:
    """Whether what is stored under the key need not be fetched first."""
    local = _local_root()
    return (local / key if local else _cached(key)).exists()


def has_blob_here(sha256: str) -> bool:
    """Whether the blob need not be fetched first."""
    return is_here(_blob_key(sha256))


def delete_blob(sha256: str) -> None:
    """Removes the blob, if it is there."""
    _delete(_blob_key(sha256))


def put_folder(folder: Path, key: str) -> None:
    """Stores a complete folder of regular files under a key that nothing else uses. Locally the folder is moved."""
    filesystem, root = _store()
    local = _local_root()
    if local is None:
        filesystem.put(f"{folder}/", f"{root}/{key}/", recursive=True)
        return
    target = local / key
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in folder.rglob("*"):
        if path.is_file():
            _sync_file(path)
    try:
        os.replace(folder, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the store is another file system
            raise
        with tempfile.TemporaryDirectory(dir=target.parent) as beside:
            os.replace(shutil.copytree(folder, Path(beside) / "copy"), target)
    _sync_directory(target.parent)


def fetch_folder(key: str) -> Path:
    """A stored folder as a local one. Raises `FileNotFoundError` where there is none."""
    return _fetch(key)


def delete_folder(key: str) -> None:
    """Removes a stored folder, if it is there."""
    _delete(key)


def _cached(key: str) -> Path:
    # One name a key, not a path: a cached part of a folder must not look like the whole of it.
    return get_settings().home.resolve() / "cache" / quote(key, safe="")


def _fetch(key: str) -> Path:
    filesystem, root = _store()
    local = _local_root()
    target = local / key if local else _cached(key)
    if target.exists():
        return target
    if local:
        raise FileNotFoundError(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Complete first, then renamed: a reader never sees half a copy, and the second of two copiers loses nothing.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        copy = Path(folder) / "copy"
        recursive = bool(filesystem.isdir(f"{root}/{key}"))
        filesystem.get(
            f"{root}/{key}" + ("/" if recursive else ""), str(copy) + ("/" if recursive else ""), recursive=recursive
        )
        if not target.exists():
            os.replace(copy, target)
    return target


def _delete(key: str) -> None:
    filesystem, root = _store()
    local = _local_root()
    cached = _cached(key)
    parts = [] if local else cached.parent.glob(f"{cached.name}%2F*")
    for path in [local / key if local else cached, *parts]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if local is None and filesystem.exists(f"{root}/{key}"):
        filesystem.rm(f"{root}/{key}", recursive=True)


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folders(prefix: str) -> list[str]:
    """Keys of the stored folders two levels below `prefix`: `artifacts` → `artifacts/<job>/<attempt>`."""
    filesystem, root = _store()
    found = filesystem.glob(f"{root}/{prefix}/*/*", detail=True)
    return [str(path).removeprefix(f"{root}/") for path, facts in found.items() if facts["type"] == "directory"]


def abandoned(before: float) -> list[Path]:
    """Folders of `incoming` that nobody has written to since `before` (seconds since the epoch): their process was killed."""
    parent = _incoming()
    folders = [folder for folder in parent.iterdir() if folder.is_dir()] if parent.is_dir() else []
    return [folder for folder in folders if _last_written(folder) < before]


def _last_written(folder: Path) -> float:
    """When something was last written below `folder`; now, where it goes meanwhile."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return time.time()


def blobs(before: float) -> list[str]:
    """The hashes of the blobs that were stored before this moment (seconds since the epoch)."""
    filesystem, root = _store()
    if not filesystem.exists(f"{root}/sha256"):
        return []
    found = filesystem.find(f"{root}/sha256", detail=True)
    return [str(path).rpartition("/")[2] for path, facts in found.items() if _stored_at(facts) < before]


def _stored_at(facts: dict[str, Any]) -> float:
    """When a file was written, as a directory tells it or an object store."""
    return float(facts["mtime"]) if "mtime" in facts else float(facts["LastModified"].timestamp())
