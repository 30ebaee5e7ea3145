"""What can be done with datasets."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from pydantic import ValidationError
from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session

from app.datasets.canonical import ROWS_VERSION
from app.datasets.reading import read
from app.datasets.schemas import UploadFields
from app.datasets.tables import Dataset
from app.files.tables import File
from app.kit import storage
from app.kit.database import reading, writing
from app.kit.errors import Conflict, NotFound
from app.kit.handlers import from_validation
from app.kit.ids import new_id
from app.kit.pagination import Paging, newest_first
from app.kit.references import references
from app.kit.uploads import Upload, receive

DEFAULT_NAME = "dataset"


async def upload(project_id: str, request: Request) -> Dataset:
    """Receives a file and makes a dataset of it; the answer is final, and a refusal leaves nothing behind.

    Raises what `kit.uploads.receive` does, and `InvalidValue` for a wrong field or rows that cannot be trained on.
    """
    async with contextmanager_in_threadpool(storage.incoming()) as folder:
        received = await receive(request, folder / "file", UploadFields.model_fields)
        return await run_in_threadpool(_create, project_id, received, folder)


def _create(project_id: str, received: Upload, folder: Path) -> Dataset:
    try:
        fields = UploadFields.model_validate(received.fields)
    except ValidationError as error:
        raise from_validation([{**problem, "loc": ("form", *problem["loc"])} for problem in error.errors()]) from None
    rows = read(folder / "file", folder / "rows", fields.format)
    filename = received.filename or DEFAULT_NAME
    file = File(
        id=new_id("file"),
        project_id=project_id,
        purpose="dataset",
        filename=filename,
        sha256=received.sha256,
        bytes=received.bytes,
    )
    dataset = Dataset(
        id=new_id("ds"),
        project_id=project_id,
        name=fields.name or filename,
        kind=rows.format.kind,
        format=rows.format.name,
        rows=rows.rows,
        file=file,
        rows_sha256=rows.sha256,
        rows_version=ROWS_VERSION,
        meta={},
    )
    with writing() as session:
        _hold_blobs(session, received.sha256, rows.sha256)
        storage.put_blob(folder / "file", received.sha256)
        storage.put_blob(folder / "rows", rows.sha256)
        session.add(dataset)
    return dataset


def get(project_id: str, dataset_id: str) -> Dataset:
    """The dataset of this id. Raises `NotFound`."""
    with reading() as session:
        return find(session, project_id, dataset_id)


def find(session: Session, project_id: str, dataset_id: str, *, lock: bool = False) -> Dataset:
    """The project's dataset of this id; with `lock` it can be neither deleted nor put to use by others until the end
    of the transaction. Raises `NotFound`."""
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.project_id == project_id)
    if lock:
        query = query.with_for_update(of=Dataset)
    # PostgreSQL holds no NUL, and answers a question about one with an error.
    dataset = session.scalars(query).one_or_none() if "\0" not in dataset_id else None
    if dataset is None:
        raise not_found(dataset_id)
    return dataset


def not_found(dataset_id: str) -> NotFound:
    """The error for an id that no dataset has."""
    return NotFound(
        f"The dataset '{dataset_id}' does not exist.",
        code="dataset_not_found",
        hint="GET /datasets lists those that do; POST /datasets uploads one.",
    )


def list_datasets(project_id: str, paging: Paging) -> tuple[list[Dataset], bool]:
    """One page of the project's datasets, newest first, and whether there are more."""
    with reading() as session:
        return newest_first(session, select(Dataset).where(Dataset.project_id == project_id), Dataset.id, paging)


def delete(project_id: str, dataset_id: str) -> None:
    """Removes a dataset, and the bytes that no other one shares. Raises `NotFound`, or `Conflict` while it is in use."""
    with writing() as session:
        dataset = find(session, project_id, dataset_id, lock=True)
        if user := references(session, "dataset", dataset_id):
            raise Conflict(
                f"The dataset '{dataset_id}' is in use: {user}.",
                code="in_use",
                hint="Wait until the job has ended, or cancel it, then try again.",
            )
        file = dataset.file
        session.delete(dataset)
        session.flush()
        if not session.scalar(select(exists().where(Dataset.file_id == file.id))):
            session.delete(file)
    _release_blobs(file.sha256, dataset.rows_sha256)


def _release_blobs(*hashes: str) -> None:
    """Deletes the blobs that no row refers to any more."""
    with writing() as session:
        _hold_blobs(session, *hashes)
        for sha256 in hashes:
            used = or_(exists().where(File.sha256 == sha256), exists().where(Dataset.rows_sha256 == sha256))
            if not session.scalar(select(used)):
                storage.delete_blob(sha256)


def _hold_blobs(session: Session, *hashes: str) -> None:
    """Until the transaction ends nobody else stores or deletes these blobs: else one could vanish between an upload that
    finds it there and the row that refers to it. SQLite's write lock does that by itself."""
    if session.get_bind().dialect.name == "sqlite":
        return
    # In one order for all, so that two holders never wait for each other.
    for sha256 in sorted(set(hashes)):
        session.execute(select(func.pg_advisory_xact_lock(int(sha256[:15], 16))))
