"""What can be done with datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request as HttpRequest
from fastapi.concurrency import contextmanager_in_threadpool
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets import blobs, converting
from app.datasets.canonical import ROWS_VERSION, read_rows
from app.datasets.converter import Request
from app.datasets.examination import Examination, examination
from app.datasets.examining import Findings
from app.datasets.formats import TAGS, candidates, is_text_column
from app.datasets.reading import Options
from app.datasets.reports import keep_refused, make_report, refusal
from app.datasets.schemas import UploadFields, dataset_out
from app.datasets.tables import Dataset, Report
from app.files.tables import File
from app.kit import storage
from app.kit.database import reading, writing
from app.kit.errors import Conflict, InvalidValue, NotFound
from app.kit.handlers import from_validation
from app.kit.ids import new_id
from app.kit.naming import find_named
from app.kit.pagination import Paging, newest_first
from app.kit.references import references
from app.kit.uploads import Upload, receive
from app.projects import removal, stored
from app.projects.audit import record
from app.projects.idempotency import arrived, creating, remember
from app.projects.limits import project_limits
from app.settings import get_settings

DEFAULT_NAME = "dataset"
# Uploads that wait for their check take threads of their own, not those that answer everything else.
CREATING = CapacityLimiter(100)


async def upload(project_id: str, request: HttpRequest) -> tuple[Dataset, bool]:
    """Receives a file and makes a dataset of it; the answer is final. The same bytes under the same options are the same
    dataset: returns it, and whether it is new. A file that is refused is kept with its report for a day.

    Raises what `kit.uploads.receive` does, and `InvalidValue` for a wrong field or rows that cannot be trained on.
    """
    async with (
        contextmanager_in_threadpool(storage.incoming()) as folder,
        contextmanager_in_threadpool(examination(folder / "file", folder)) as examining,
    ):

        def look(sofar: Upload) -> None:
            try:
                examining.arrived(*_as_asked(sofar)[1:], sofar.bytes)
            except InvalidValue:
                return  # is said when all has arrived: few clients listen before

        limit = await to_thread.run_sync(_upload_limit, project_id)
        received = await receive(request, folder / "file", UploadFields.model_fields, look, limit)
        return await to_thread.run_sync(_create, project_id, received, folder, examining, limiter=CREATING)


def _upload_limit(project_id: str) -> int:
    """How many bytes an upload may have. Raises `Conflict` where the project's storage is full."""
    with reading() as session:
        limits = project_limits(session, project_id)
        stored.require_room(session, project_id, 0)
    most = get_settings().max_upload_bytes
    return most if limits.upload_bytes is None else min(most, limits.upload_bytes)


def _as_asked(received: Upload) -> tuple[UploadFields, str, Options]:
    """The fields that came with a file, what it is called, and how it is to be read. Raises `InvalidValue`."""
    try:
        fields = UploadFields.model_validate(received.fields)
    except ValidationError as error:
        raise from_validation([{**problem, "loc": ("form", *problem["loc"])} for problem in error.errors()]) from None
    options = fields.options()
    _check_options(options)
    return fields, received.filename or fields.name or DEFAULT_NAME, options


def _create(project_id: str, received: Upload, folder: Path, examining: Examination) -> tuple[Dataset, bool]:
    fields, filename, options = _as_asked(received)
    arrived([received.sha256, received.filename, received.fields])
    findings = examining.findings(filename, options, received.bytes)
    file = File(
        id=new_id("file"),
        project_id=project_id,
        purpose="dataset",
        filename=filename,
        sha256=received.sha256,
        bytes=received.bytes,
    )
    report = make_report(file, options, findings, folder)
    if findings.refused or findings.format is None or findings.kind is None:
        keep_refused(report, folder)
        raise refusal(report, findings.refused or "The file has no rows.")
    dataset = Dataset(
        id=new_id("ds"),
        project_id=project_id,
        name=fields.name or filename,
        kind=findings.kind,
        format=findings.format,
        container=findings.container,
        identity=_identity(received.sha256, findings, options),
        rows=findings.rows - findings.bad_rows,
        statistics=findings.statistics,
        file=file,
        report=report,
        meta={},
    )
    with blobs.storing(*blobs.of(report)) as claim:
        blobs.put(report, folder)
        with creating() as session:
            blobs.settle(session, claim)
            there = select(Dataset).where(Dataset.project_id == project_id, Dataset.identity == dataset.identity)
            found = session.scalars(there).one_or_none()
            if found is not None:
                remember(session, 200, dataset_out(found))
            else:
                stored.require_room(session, project_id, file.bytes)
                session.add(dataset)
                session.flush()
                record(session, "dataset.create", dataset.id, name=dataset.name)
                remember(session, 201, dataset_out(dataset))
                stored.add(session, project_id, file.bytes)
    if found is not None:
        blobs.release(*blobs.of(report))  # which the dataset that is there need not have
        return found, False
    return dataset, True


def _check_options(options: Options) -> None:
    """Raises `InvalidValue` where no format has all that is asked for."""
    for param, names in (("columns", options.columns), ("tags", TAGS | options.tags if options.tags else {})):
        keys = [key for key in names.values() if key is not None]
        if len(set(keys)) < len(keys):
            raise InvalidValue(
                f"Two of '{param}' have the same name.", param=param, hint="Give each a name of its own."
            )
    if any(candidates(options.format, options.kind, options.columns, options.tags)) or is_text_column(*options[:3]):
        return
    if not any(candidates(options.format, options.kind, {}, {})):
        raise InvalidValue(
            f"The format '{options.format}' has no rows of kind '{options.kind}'.",
            param="kind",
            hint="docs/formats.md lists what each format has.",
        )
    raise InvalidValue(
        f"No format has the columns {', '.join(sorted(options.columns)) or 'given'} together"
        + (" with 'tags', which are ShareGPT's." if options.tags else "."),
        param="columns" if options.columns else "tags",
        hint="docs/formats.md lists the columns of each format.",
    )


def _identity(sha256: str, findings: Findings, options: Options) -> str:
    """The same for the same bytes read in the same way, however the options say so."""
    ways = [findings.format, findings.kind, sorted(options.columns.items()), sorted(options.tags.items())]
    return hashlib.sha256(repr([sha256, *ways]).encode()).hexdigest()


def rows_path(dataset: Dataset) -> Path:
    """The local file of a dataset's canonical rows, which is made from its file where it is not there yet. Blocks.

    Raises `NotFound`, `Unavailable`, and `OSError` if the disk is full.
    """
    if path := _made_rows(dataset.id):
        return path
    with converting.alone(dataset.id):
        return _made_rows(dataset.id) or _make_rows(dataset)


def _made_rows(dataset_id: str) -> Path | None:
    with reading() as session:
        now = session.get(Dataset, dataset_id)
    if now is None:
        raise not_found(dataset_id)
    is_made = now.rows_sha256 is not None and now.rows_version == ROWS_VERSION
    return storage.fetch_blob(str(now.rows_sha256)) if is_made else None


def _make_rows(dataset: Dataset) -> Path:
    source, target = storage.fetch_blob(dataset.file.sha256), "rows"
    with storage.incoming() as folder:
        options = Options(**dataset.report.options)
        request = Request(str(source), dataset.file.filename, options, str(folder / target))
        sha256 = converting.convert(dataset.project_id, request)
        with blobs.storing(sha256) as claim:
            storage.put_blob(folder / target, sha256)
            with writing() as session:
                blobs.settle(session, claim)
                row = find(session, dataset.project_id, dataset.id, lock=True)
                older, row.rows_sha256, row.rows_version = row.rows_sha256, sha256, ROWS_VERSION
    if older and older != sha256:
        blobs.release(older)  # of the older form
    return storage.fetch_blob(sha256)


def rows(project_id: str, dataset_id: str, after: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Canonical rows after number `after`, each with its number, and whether there are more. Raises `NotFound`."""
    start = after + 1
    found = list(islice(read_rows(rows_path(get(project_id, dataset_id)), start), limit + 1))
    return [{"row": start + number, **row} for number, row in enumerate(found[:limit])], len(found) > limit


def get(project_id: str, dataset_id: str) -> Dataset:
    """The dataset of this name or id. Raises what `find` does."""
    with reading() as session:
        return find(session, project_id, dataset_id)


def find(session: Session, project_id: str, dataset_id: str, *, lock: bool = False) -> Dataset:
    """The project's dataset of this name or id; with `lock` it can be neither deleted nor put to use by others until the end
    of the transaction. Raises `NotFound`, and `Conflict` where several have the name."""
    own = select(Dataset).where(Dataset.project_id == project_id)
    dataset = find_named(session, Dataset, own, dataset_id, lock=lock)
    if dataset is None:
        raise not_found(dataset_id)
    return dataset


def not_found(dataset_id: str) -> NotFound:
    """The error for a name or id that no dataset has."""
    return NotFound(
        f"The dataset '{dataset_id}' does not exist.",
        code="dataset_not_found",
        hint="GET /datasets lists those that do; POST /datasets uploads one.",
    )


def list_datasets(project_id: str, paging: Paging) -> tuple[list[Dataset], bool]:
    """One page of the project's datasets, newest first, and whether there are more."""
    with reading() as session:
        return newest_first(session, select(Dataset).where(Dataset.project_id == project_id), Dataset.id, paging)


def _remove_all(session: Session, project_id: str) -> Callable[[], None]:
    hashes = set[str]()
    for table in (File.sha256, Report.rows_sha256, Dataset.rows_sha256):
        query = select(table).where(table.class_.project_id == project_id, table.is_not(None))
        hashes |= set(session.scalars(query))
    return lambda: blobs.release(*hashes)


removal.register(_remove_all)


def delete(project_id: str, dataset_id: str) -> None:
    """Removes a dataset, and the bytes that no other one shares. Raises `NotFound`, or `Conflict` while it is in use."""
    with writing() as session:
        dataset = find(session, project_id, dataset_id, lock=True)
        if user := references(session, "dataset", dataset.id, project_id):
            raise Conflict(
                f"The dataset '{dataset_id}' is in use: {user}.",
                code="in_use",
                hint="Wait until the job has ended, or cancel it, then try again.",
            )
        record(session, "dataset.delete", dataset.id, name=dataset.name)
        report = dataset.report
        released = [*blobs.of(report), *([dataset.rows_sha256] if dataset.rows_sha256 else [])]
        session.delete(dataset)
        session.flush()
        session.delete(report)
        session.flush()
        session.delete(report.file)
        stored.add(session, project_id, -report.file.bytes)
    blobs.release(*released)
