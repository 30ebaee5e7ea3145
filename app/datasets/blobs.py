"""The blobs of datasets and reports: stored before the row that refers to them, deleted after the last one that does.

Storing and deleting happen outside of transactions, since an object store takes its time and SQLite has one writer. What
keeps the two apart is a claim: a row that says who is storing or deleting a blob.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import ColumnElement, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from app.datasets.tables import BlobClaim, Dataset, Report
from app.files.tables import File
from app.kit import storage
from app.kit.database import database_now, lease_until, reading, writing
from app.kit.errors import Unavailable
from app.kit.ids import new_id

log = logging.getLogger(__name__)

COLUMNS = (File.sha256, Dataset.rows_sha256, Report.rows_sha256)

# A claim outlives its process, which may be killed. Nothing is stored for longer than a day. An object store's client gives
# a request that deletes up within minutes.
STORING_SECONDS = 24 * 3600.0
DELETING_SECONDS = 600.0
# How long whoever wants to store bytes waits until their deletion has ended.
WAIT_SECONDS = 30.0
POLL_SECONDS = 0.05


def of(report: Report) -> list[str]:
    """The hashes of a report's file and of its problems."""
    return [report.file.sha256, *([report.rows_sha256] if report.rows_sha256 else [])]


def put(report: Report, folder: Path) -> None:
    """Moves the received file and its problems, which lie in `folder`, into the store."""
    storage.put_blob(folder / "file", report.file.sha256)
    if report.rows_sha256:
        storage.put_blob(folder / "problems", report.rows_sha256)


@contextmanager
def storing(*hashes: str) -> Iterator[str]:
    """While the block runs nobody deletes these blobs, whether they are there already or are stored now.

    Yields a claim. The block stores the blobs, and then ends the claim by `settle` in the transaction that inserts the rows
    that refer to them. If it fails instead, blobs that no row refers to are removed. Raises `Unavailable` (`blob_busy`) if
    one of them is being deleted.
    """
    claim, deadline = new_id("claim"), time.monotonic() + WAIT_SECONDS
    while not _claim(claim, hashes):
        if time.monotonic() > deadline:
            raise Unavailable(
                "The same bytes are being deleted.", code="blob_busy", hint="Send the request again in a minute."
            )
        time.sleep(POLL_SECONDS)
    try:
        yield claim
    except BaseException:
        try:
            with writing() as session:
                settle(session, claim)
            release(*hashes)
        except Exception as error:
            log.warning("blobs of a request that failed are left to housekeeping: %s", error)
        raise


def _claim(claim: str, hashes: Sequence[str]) -> bool:
    """Says that these blobs are being stored. False while one of them is being deleted."""
    with writing() as session:
        _lock(session, hashes)
        if session.scalar(select(_claimed(session, BlobClaim.sha256.in_(hashes), BlobClaim.deletes.is_(True)))):
            return False
        until = lease_until(session, STORING_SECONDS)
        session.add_all(BlobClaim(id=claim, sha256=sha256, deletes=False, expires_at=until) for sha256 in set(hashes))
        return True


def settle(session: Session, claim: str) -> None:
    """Ends a claim with the transaction, which has these blobs to itself from here on."""
    _lock(session, session.scalars(select(BlobClaim.sha256).where(BlobClaim.id == claim)).all())
    session.execute(delete(BlobClaim).where(BlobClaim.id == claim))


def release(*hashes: str) -> None:
    """Deletes the blobs that no row refers to any more and nobody is storing. What fails is left to housekeeping."""
    claim = new_id("claim")
    with writing() as session:
        _lock(session, hashes)
        unused = [sha256 for sha256 in set(hashes) if not session.scalar(select(_in_use(session, sha256)))]
        until = lease_until(session, DELETING_SECONDS)
        session.add_all(BlobClaim(id=claim, sha256=sha256, deletes=True, expires_at=until) for sha256 in unused)
    if not unused:
        return
    try:
        for sha256 in unused:
            storage.delete_blob(sha256)
    except Exception as error:  # of the store's library
        log.warning("%d blobs could not be deleted and are left to housekeeping: %s", len(unused), error)
    with writing() as session:
        settle(session, claim)


def _in_use(session: Session, sha256: str) -> ColumnElement[bool]:
    # One statement, which sees one moment: who stores a blob ends the claim as the row appears.
    referred = (exists().where(column == sha256) for column in COLUMNS)
    return or_(_claimed(session, BlobClaim.sha256 == sha256), *referred)


def _claimed(session: Session, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(*conditions, BlobClaim.expires_at > database_now(session))


def _lock(session: Session, hashes: Sequence[str]) -> None:
    """Until the transaction ends nobody else claims or settles these blobs. SQLite's write lock does that by itself."""
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


def forget_expired_claims() -> None:
    """Removes the claims of processes that were killed."""
    with writing() as session:
        session.execute(delete(BlobClaim).where(BlobClaim.expires_at <= database_now(session)))
