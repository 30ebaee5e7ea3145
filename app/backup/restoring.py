"""Restoring a backup into an empty service: storage first, then every row in one transaction."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy import JSON, Column, Connection, Date, DateTime, MetaData, Table, delete, func, select, update

from app.backup.archive import FORMAT, MANIFEST, Hashing, Manifest, blob_name, folder_name, table_name
from app.kit import storage
from app.kit.database import DEFAULT_PROJECT, Base, engine
from app.kit.errors import Conflict, InvalidValue
from app.migrations import alembic_config

BATCH_ROWS = 1000


class Archive(NamedTuple):
    """An open backup, and its members by name: tarfile's own search goes through all of them each time."""

    tar: tarfile.TarFile
    members: dict[str, tarfile.TarInfo]

    def open(self, name: str) -> IO[bytes]:
        """A member's bytes. Raises `KeyError` where there is none."""
        stream = self.tar.extractfile(self.members[name])
        if stream is None:
            raise KeyError(f"'{name}' is not a file")
        return stream


def restore_backup(path: Path) -> Manifest:
    """Makes this service, whose database must be empty, the one that was backed up, and returns the backup's manifest.

    Killed on the way it leaves the database empty, and can be called again. Raises `InvalidValue` for a file that is no
    whole backup or a newer version's, `Conflict` where the database holds something.
    """
    config = alembic_config()
    try:
        with tarfile.open(path, "r:") as tar:
            archive = Archive(tar, {member.name: member for member in tar})
            manifest = _manifest(archive, config)
            _require_empty()
            for table, rows in manifest.tables.items():
                _check_hash(table_name(table), _drained(archive.open(table_name(table))), rows.sha256)
            for sha256 in manifest.blobs:
                with storage.incoming() as folder:
                    _extract(archive, blob_name(sha256), folder / "blob", sha256)
                    storage.put_blob(folder / "blob", sha256)
            for key, files in manifest.folders.items():
                _restore_folder(archive, key, files)
            # The rows were written under this revision; the tables are made anew, so that nothing else is in them.
            command.downgrade(config, "base")
            command.upgrade(config, manifest.revision)
            _restore_rows(archive, manifest)
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise _bad(f"'{path}' is not a whole backup: {error}") from error
    except FileNotFoundError as error:
        raise _bad(f"'{path}' cannot be read: {error}") from error
    command.upgrade(config, "head")
    return manifest


def _manifest(archive: Archive, config: Config) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(archive.open(MANIFEST).read())
        if manifest.format > FORMAT:
            raise _newer(manifest)
        ScriptDirectory.from_config(config).get_revision(manifest.revision)
    except ValidationError as error:
        raise _bad(f"The backup's manifest is wrong: {error.errors()[0]['msg']}.") from error
    except CommandError as error:
        raise _newer(manifest) from error
    return manifest


def _require_empty() -> None:
    """Raises `Conflict` where there is more than what a migration makes: the default project."""
    tables = MetaData()
    with engine().connect() as connection:
        tables.reflect(connection, only=lambda name, _: name in Base.metadata.tables)
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in tables.sorted_tables
        }
        if "projects" in counts:
            projects = tables.tables["projects"]
            counts["projects"] -= connection.scalar(select(func.count()).where(projects.c.id == DEFAULT_PROJECT)) or 0
    held = [f"{count} {name}" for name, count in counts.items() if count]
    if held:
        raise Conflict(
            f"The database is not empty: it holds {', '.join(held)}.",
            hint="Restore with a BURNISH_HOME or BURNISH_DATABASE_URL that is new, before `burnish up`.",
        )


def _restore_folder(archive: Archive, key: str, files: dict[str, str]) -> None:
    with storage.incoming() as incoming:
        folder = incoming / "folder"
        for name, sha256 in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _extract(archive, folder_name(key, name), folder / name, sha256)
        storage.delete_folder(key)  # of a restore that was killed
        storage.put_folder(folder, key)


def _extract(archive: Archive, name: str, target: Path, sha256: str) -> None:
    hashing = Hashing(archive.open(name))
    with target.open("wb") as stream:
        shutil.copyfileobj(hashing, stream)
    _check_hash(name, hashing.sha256, sha256)


def _drained(stream: IO[bytes]) -> str:
    """The hash of what is left of the stream."""
    hashing = Hashing(stream)
    while hashing.read(2**20):
        pass
    return hashing.sha256


def _check_hash(name: str, found: str, sha256: str) -> None:
    if found != sha256:
        raise _bad(f"The backup is damaged: '{name}' has another hash than its manifest says.")


def _restore_rows(archive: Archive, manifest: Manifest) -> None:
    tables = MetaData()
    with engine().execution_options(write=True).begin() as connection:
        tables.reflect(connection)
        unknown = manifest.tables.keys() - tables.tables.keys()
        if unknown:
            raise _bad(f"The backup has tables that this version does not know: {', '.join(sorted(unknown))}.")
        connection.execute(delete(tables.tables["projects"]))  # the default one comes with the backup
        for table in tables.sorted_tables:
            if table.name in manifest.tables:
                _insert(connection, table, map(orjson.loads, archive.open(table_name(table.name))))


def _insert(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    """Inserts rows in whatever order they come: what refers to the same table is filled in at the end."""
    for column in table.c:
        if isinstance(column.type, JSON):
            column.type = JSON(none_as_null=True)
    own = [column for column in table.c if any(key.column.table is table for key in column.foreign_keys)]
    (identity, *_), later = table.primary_key.columns, list[tuple[Any, dict[str, Any]]]()
    while batch := [
        {name: _value(table.c[name], value) for name, value in row.items()} for row in islice(rows, BATCH_ROWS)
    ]:
        for row in batch if own else ():
            refers = {column.name: row[column.name] for column in own if row[column.name] is not None}
            later += [(row[identity.name], refers)] if refers else []
            row |= dict.fromkeys(refers)
        connection.execute(table.insert(), batch)
    for value, refers in later:
        connection.execute(update(table).where(identity == value).values(**refers))


def _value(column: Column[Any], value: Any) -> Any:
    if isinstance(column.type, DateTime) and value is not None:
        return datetime.fromisoformat(value)
    if isinstance(column.type, Date) and value is not None:
        return date.fromisoformat(value)
    return value


def _bad(message: str) -> InvalidValue:
    return InvalidValue(message, hint="Copy the file again, or take another backup; nothing was restored.")


def _newer(manifest: Manifest) -> InvalidValue:
    return InvalidValue(
        f"The backup was made by Burnish {manifest.version}, which is newer than this one.",
        hint="Update this service first; nothing was restored.",
    )
