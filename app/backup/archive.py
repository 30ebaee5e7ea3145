"""A backup's file: a tar of blobs, stored folders and tables (JSON, a row a line), and last a manifest that names them all.

It says nothing of the database's kind: a backup of SQLite restores into PostgreSQL, and the other way round.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import IO, Annotated

from pydantic import AfterValidator, BaseModel, StringConstraints

FORMAT = 1
MANIFEST = "manifest.json"
# What a running machine says of itself: no part of a backup, and wrong where one is restored.
MACHINE_TABLES = frozenset({"blob_claims", "engines", "engine_adapters", "workers"})

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FolderKey = Annotated[
    str, StringConstraints(pattern=r"^(artifacts/[0-9a-z_]+/[0-9]+|checkpoints/[0-9a-z_]+/[0-9]+-[0-9]+)$")
]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\0" in path:
        raise ValueError("leads out of its folder")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]


class Rows(BaseModel):
    """How many rows a table has, and the hash of their file."""

    rows: int
    sha256: Sha256


class Manifest(BaseModel):
    """What a backup holds: the tables, the hashes of the blobs, and those of each folder's files."""

    format: int
    version: str
    revision: str
    created_at: str
    tables: dict[Annotated[str, StringConstraints(pattern=r"^[a-z_]+$")], Rows]
    blobs: list[Sha256]
    folders: dict[FolderKey, dict[RelativePath, Sha256]]


def blob_name(sha256: str) -> str:
    """The member that is a blob."""
    return f"blobs/{sha256}"


def folder_name(key: str, path: str) -> str:
    """The member that is a file of a stored folder."""
    return f"folders/{key}/{path}"


def table_name(table: str) -> str:
    """The member that holds a table's rows."""
    return f"tables/{table}.jsonl"


class Hashing:
    """A stream that is read through, and the SHA-256 of what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._hash = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()
