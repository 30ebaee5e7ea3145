"""Alembic is the only way the schema changes: from nothing to the tables, on both databases, and back."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.config import Config

from tests.conftest import REPOSITORY


def test_migrations_and_tables_are_equal(service: str) -> None:
    command.check(Config(REPOSITORY / "alembic.ini"))


def test_migrating_twice_changes_nothing(service: str) -> None:
    from app.up import migrate

    migrate()
    command.check(Config(REPOSITORY / "alembic.ini"))


@pytest.mark.parametrize("steps", ["base"])
def test_a_schema_can_be_taken_back(service: str, steps: str) -> None:
    config = Config(REPOSITORY / "alembic.ini")
    command.downgrade(config, steps)
    command.upgrade(config, "head")
    command.check(config)
