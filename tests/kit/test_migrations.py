"""Alembic is the only way the schema changes: from nothing to the tables, on both databases, and back."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from alembic import command
from sqlalchemy import select, text

from app.jobs import attempts
from app.jobs.spec import JobSpec
from app.kit.database import DEFAULT_PROJECT, writing
from app.migrations import alembic_config
from app.models.tables import Model
from app.projects.tables import Stored


def test_migrations_and_tables_are_equal(service: str) -> None:
    command.check(alembic_config())


def test_migrating_twice_changes_nothing(service: str) -> None:
    from app.up import migrate

    migrate()
    command.check(alembic_config())


@pytest.mark.parametrize("steps", ["base"])
def test_a_schema_can_be_taken_back(service: str, steps: str) -> None:
    config = alembic_config()
    command.downgrade(config, steps)
    command.upgrade(config, "head")
    command.check(config)


def test_what_projects_store_is_summed_up_by_the_migration(service: str) -> None:
    httpx.post(f"{service}/datasets", content=b'{"instruction": "a", "output": "b"}').raise_for_status()
    with writing() as session:
        counted = {row.project_id: row.bytes for row in session.scalars(select(Stored))}
        session.add(Model(
            id="model_tuned", project_id=DEFAULT_PROJECT, name="tuned", kind="adapter", status="ready", source="job:x",
            facts={"stored_bytes": 2**33},
        ))  # fmt: skip
    config = alembic_config()
    command.downgrade(config, "0008")
    command.upgrade(config, "head")
    with writing() as session:
        summed = {row.project_id: row.bytes for row in session.scalars(select(Stored))}
        session.delete(session.get_one(Model, "model_tuned"))
    assert summed == {DEFAULT_PROJECT: counted[DEFAULT_PROJECT] + 2**33}


# Before this one no process knew workers, webhooks or logs, and jobs ran.
OLD = "0004"


def test_a_database_with_live_jobs_is_migrated_under_the_processes_of_the_version_before(service: str) -> None:
    """They go on writing what they know of; the new ones find the jobs as they left them."""
    config = alembic_config()
    command.downgrade(config, OLD)
    now = "2026-01-01 00:00:00"
    values = {
        "id": "job_old", "project_id": DEFAULT_PROJECT, "name": "old", "status": "queued", "spec": JobSpec().model_dump_json(),
        "base_model_id": "model_x", "base_model_name": "x", "dataset_id": "ds_x", "metadata": "{}", "created_at": now,
    }  # fmt: skip
    columns = {"attempt": 0, "cancel_requested": False, "event_count": 1} | values

    def insert(row: dict[str, Any]) -> None:
        names = ", ".join(row)
        with writing() as session:
            session.execute(text(f"INSERT INTO jobs ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row)

    insert(columns)
    command.upgrade(config, "head")
    insert(columns | {"id": "job_later", "name": "later"})
    try:
        for id in ("job_later", "job_old"):
            claimed = attempts.claim("new")
            assert claimed is not None
            assert (claimed.id, claimed.priority, claimed.max_seconds) == (id, 0, None)
            with writing() as session:
                attempts.cancelled(session, attempts.hold(session, claimed))
    finally:
        with writing() as session:
            session.execute(text("DELETE FROM jobs WHERE id IN ('job_old', 'job_later')"))
