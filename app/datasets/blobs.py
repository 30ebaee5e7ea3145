"""The blobs of datasets and reports: stored with the row that refers to them, deleted with the last one that does."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset, Report
from app.files.tables import File
from app.kit import storage
from app.kit.database import reading, writing

COLUMNS = (File.sha256, Dataset.rows_sha256, Report.rows_sha256)


def of(report: Report) -> list[str]:
    """The hashes of a report's file and of its problems."""
    return [report.file.sha256, *([report.rows_sha256] if report.rows_sha256 else [])]


def put(report: Report, folder: Path) -> None:
    """Moves the received file and its problems, which lie in `folder`, into the store."""
    storage.put_blob(folder / "file", report.file.sha256)
    if report.rows_sha256:
        storage.put_blob(folder / "problems", report.rows_sha256)


def hold(session: Session, *hashes: str) -> None:
    """Until the transaction ends nobody else stores or deletes these blobs: else one could vanish between an upload that
    finds it there and the row that refers to it. SQLite's write lock does that by itself."""
    if session.get_bind().dialect.name == "sqlite":
        return
    # In one order for all, so that two holders never wait for each other.
    for sha256 in sorted(set(hashes)):
        session.execute(select(func.pg_advisory_xact_lock(int(sha256[:15], 16))))


def unknown(hashes: list[str]) -> list[str]:
    """Those of these blobs that no row refers to at this moment."""
    with reading() as session:
        known = {found for column in COLUMNS for found in session.scalars(select(column).distinct())}
    return [sha256 for sha256 in hashes if sha256 not in known]


def release(*hashes: str) -> None:
    """Deletes the blobs that no row refers to any more."""
    with writing() as session:
        hold(session, *hashes)
        for sha256 in hashes:
            if not session.scalar(select(or_(*(exists().where(column == sha256) for column in COLUMNS)))):
                storage.delete_blob(sha256)
