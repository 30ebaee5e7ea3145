"""Making a backup while the service runs: one snapshot of the database, and every byte that it refers to."""

from __future__ import annotations

import os
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import orjson
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Table, select

from app.backup.archive import (
    FORMAT,
    MACHINE_TABLES,
    MANIFEST,
    Hashing,
    Manifest,
    Rows,
    blob_name,
    folder_name,
    table_name,
)
from app.datasets import blobs
from app.jobs.tables import Checkpoint
from app.kit import storage
from app.kit.database import Base, reading, snapshot, utc_now
from app.kit.errors import Conflict, ServiceError
from app.kit.uploads import HashedFile
from app.models.tables import Model

# A snapshot of which something was deleted before it could be copied is taken again, as often as this.
SNAPSHOTS = 20

Owner = tuple[type[Base], str]


class _Gone(Exception):
    """Something that the snapshot refers to was deleted since."""


def write_backup(path: Path) -> Manifest:
    """Writes a backup of everything to `path`, which appears when it is complete, and returns its manifest.

    Whatever was acknowledged before this is called, and not deleted before it returns, is in it. Raises `Conflict` where
    `path` is there already or the database is not migrated, and `ServiceError` where the store has lost or changed
    something.
    """
    if path.exists():
        raise Conflict(f"'{path}' is there already.", hint="Choose another name, or move it away.")
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as stream, tempfile.TemporaryDirectory() as scratch:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                manifest = _write(archive, Path(scratch))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return manifest


def _write(archive: tarfile.TarFile, scratch: Path) -> Manifest:
    copied_blobs, copied_folders = set[str](), dict[str, dict[str, str]]()
    for _ in range(SNAPSHOTS):
        manifest, folders = _snapshot(scratch)
        try:
            for sha256 in manifest.blobs:
                if sha256 not in copied_blobs:
                    _add_blob(archive, sha256)
                    copied_blobs.add(sha256)
            for key, owner in folders.items():
                if key not in copied_folders:
                    copied_folders[key] = _add_folder(archive, key, owner)
        except _Gone as gone:
            missing = gone
            continue
        manifest.folders = {key: copied_folders[key] for key in folders}
        for table in manifest.tables:
            archive.add(scratch / table, table_name(table), filter=_plain)
        (scratch / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        archive.add(scratch / MANIFEST, MANIFEST, filter=_plain)
        return manifest
    raise ServiceError(
        f"The backup was given up: {missing} is named in the database and is not in storage.",
        hint="Look whether BURNISH_STORAGE_URL is the service's; if it is, the file was lost: delete what it belongs to.",
    )


def _snapshot(scratch: Path) -> tuple[Manifest, dict[str, Owner]]:
    """Writes every table to a file of `scratch`, all as of one moment. Returns the manifest, without the folders' files,
    and the folders with the table and the id of the rows that they belong to."""
    with snapshot() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision is None:
            raise Conflict(
                "The database has no tables yet.", hint="There is nothing to back up: run `burnish up` first."
            )
        tables = [table for table in Base.metadata.sorted_tables if table.name not in MACHINE_TABLES]
        written = {table.name: _write_rows(connection, table, scratch / table.name) for table in tables}
        hashes = {
            sha256
            for column in blobs.COLUMNS
            for sha256 in connection.scalars(select(column).where(column.is_not(None)))
        }
        stored = select(Model.location, Model.id).where(Model.kind != "base", Model.location.is_not(None))
        folders: dict[str, Owner] = {
            str(Path(str(location)).parent): (Model, id) for location, id in connection.execute(stored)
        }
        folders |= {key: (Checkpoint, id) for key, id in connection.execute(select(Checkpoint.key, Checkpoint.id))}
    manifest = Manifest(
        format=FORMAT,
        version=version("burnish"),
        revision=revision,
        created_at=utc_now().isoformat(),
        tables=written,
        blobs=sorted(hashes),
        folders={},
    )
    return manifest, folders


def _write_rows(connection: Connection, table: Table, path: Path) -> Rows:
    file, count, names = HashedFile(path), 0, [str(column.name) for column in table.c]
    try:
        for row in connection.execution_options(yield_per=1000).execute(select(table)):
            file.write(orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    finally:
        file.close()
    return Rows(rows=count, sha256=file.sha256)


def _add_blob(archive: tarfile.TarFile, sha256: str) -> None:
    try:
        path = storage.fetch_blob(sha256)
        found = _add(archive, path, blob_name(sha256))
    except FileNotFoundError as error:
        raise _Gone(f"the blob {sha256}") from error
    if found != sha256:
        raise ServiceError(
            f"The blob {sha256} is damaged in storage: its hash is {found}.",
            hint="Mend the disk, and put the file back from an older backup.",
        )


def _add_folder(archive: tarfile.TarFile, key: str, owner: Owner) -> dict[str, str]:
    """Adds a stored folder; returns the hashes of its files."""
    try:
        folder = storage.fetch_folder(key)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        hashes = {name: _add(archive, path, folder_name(key, name)) for name, path in zip(names, paths, strict=True)}
    except FileNotFoundError as error:
        raise _Gone(f"the folder {key}") from error
    # The row goes before the files do: while it is there they all were.
    with reading() as session:
        if session.get(*owner) is None:
            raise _Gone(f"the folder {key}")
    return hashes


def _add(archive: tarfile.TarFile, path: Path, name: str) -> str:
    """Adds a file; returns its hash."""
    with path.open("rb") as stream:
        member = tarfile.TarInfo(name)
        member.size = os.fstat(stream.fileno()).st_size
        hashing = Hashing(stream)
        archive.addfile(member, hashing)
        return hashing.sha256


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member that tells nothing of the machine that it was made on."""
    plain = tarfile.TarInfo(member.name)
    plain.size = member.size
    return plain
