"""rows that a job mixes in"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("replay_dataset_id", sa.String(length=40), nullable=True))
    op.create_index(op.f("ix_jobs_replay_dataset_id"), "jobs", ["replay_dataset_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_replay_dataset_id"), "jobs")
    op.drop_column("jobs", "replay_dataset_id")
