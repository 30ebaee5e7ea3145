"""The database's schema and how it changes, by Alembic. A migration outlives the code: it imports nothing of ours."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config


def alembic_config() -> Config:
    """Alembic's configuration, which lies beside the migrations, in a checkout as in an installed wheel."""
    return Config(Path(__file__).with_name("alembic.ini"))
