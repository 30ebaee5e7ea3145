"""What can be done with reports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets import blobs
from app.datasets.deriving import repaired
from app.datasets.examining import Findings
from app.datasets.reading import Options
from app.datasets.tables import Dataset, Report
from app.files.tables import File
from app.kit import storage
from app.kit.database import database_now, reading, utc_now, writing
from app.kit.errors import Conflict, InvalidValue, NotFound
from app.kit.ids import new_id
from app.projects import stored

KEPT = timedelta(hours=24)
# The smallest piece of a streamed answer. Each piece costs a thread hop and a network write, far more than one line does.
PIECE_BYTES = 64 * 2**10
# What is wrong with a file as a whole, and is mended in another way than row by row.
FILE_CODES = {"unreadable_file", "too_large", "no_rows", "unknown_format", "single_label"}


def make_report(file: File, options: Options, findings: Findings, folder: Path) -> Report:
    """The report on a file, not stored yet; its problems lie in `folder`."""
    problems = folder / "problems"
    with problems.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Report(
        id=new_id("rep"),
        project_id=file.project_id,
        file=file,
        options=options._asdict(),
        rows=findings.rows,
        bad_rows=findings.bad_rows,
        repairable_rows=findings.repairable_rows,
        complete=findings.complete,
        problems=findings.problems,
        rows_sha256=sha256 if problems.stat().st_size else None,
    )


def keep_refused(report: Report, folder: Path) -> None:
    """Stores a report with its file, for a day."""
    report.expires_at = report.file.expires_at = utc_now() + KEPT
    report.file.purpose = "refused"
    with blobs.storing(*blobs.of(report)) as claim:
        blobs.put(report, folder)
        with writing() as session:
            blobs.settle(session, claim)
            session.add(report)
            session.flush()
            stored.add(session, report.project_id, report.file.bytes)


def refusal(report: Report, message: str) -> InvalidValue:
    """The error that an upload gets which is refused."""
    hint = "Mend or remove the rows and upload the file again, or send on_bad_rows=drop."
    if report.repairable_rows:
        hint += f" {report.repairable_rows} can be mended: GET /reports/{report.id}/repaired."
    whole_file = [problem["hint"] for problem in report.problems if problem["code"] in FILE_CODES]
    return InvalidValue(
        message,
        param="file",
        code="bad_rows",
        hint=whole_file[0] if whole_file else hint,
        problems=report.problems,
        problem_count=report.bad_rows,
        report=report.id,
    )


def get(project_id: str, id: str) -> tuple[Report, str | None]:
    """The report and the id of its dataset, if it has one. Raises `NotFound`."""
    with reading() as session:
        report = _find(session, project_id, id)
        return report, session.scalar(select(Dataset.id).where(Dataset.report_id == id))


def problems(project_id: str, id: str) -> Path | None:
    """The file of the problems, a JSON object a line; None where there are none. Raises `NotFound`."""
    report, _ = get(project_id, id)
    return storage.fetch_blob(report.rows_sha256) if report.rows_sha256 else None


def repair(project_id: str, id: str) -> Iterator[bytes]:
    """The mended file, in pieces of whole lines. Raises `NotFound`, and `Conflict` where no row can be mended."""
    report, _ = get(project_id, id)
    if not report.repairable_rows:
        raise Conflict(
            "No row of the file can be mended mechanically.",
            code="nothing_to_repair",
            hint=f"GET /reports/{id}/rows says what is wrong with each.",
        )
    source = storage.fetch_blob(report.file.sha256)
    return _joined(repaired(source, report.file.filename, Options(**report.options)))


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines in pieces of at least `PIECE_BYTES`; the last one may be smaller."""
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _find(session: Session, project_id: str, id: str) -> Report:
    query = select(Report).where(Report.id == id, Report.project_id == project_id)
    # PostgreSQL holds no NUL, and answers a question about one with an error.
    report = session.scalars(query).one_or_none() if "\0" not in id else None
    if report is None or (report.expires_at is not None and report.expires_at <= utc_now()):
        raise NotFound(
            f"The report '{id}' does not exist.",
            code="report_not_found",
            hint="A refused file's report is kept for 24 hours; a dataset names its report.",
        )
    return report


def remove_expired() -> None:
    """Removes the reports that are kept no longer, and their files."""
    with reading() as session:
        expired = list(session.scalars(select(Report).where(Report.expires_at <= database_now(session))))
    for report in expired:
        with writing() as session:
            if (row := session.get(Report, report.id)) is None:
                continue
            file = row.file
            session.delete(row)
            session.flush()
            session.delete(file)
            stored.add(session, file.project_id, -file.bytes)
        blobs.release(*blobs.of(report))
