"""checkpoints; jobs that are paused and tried again"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_checkpoints_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("job_id", "attempt", "step", name=op.f("uq_checkpoints_job_id_attempt_step")),
    )
    op.add_column("jobs", sa.Column("pause_requested", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("retried_after", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("resume", sa.String(length=20), nullable=True))
    op.add_column("attempts", sa.Column("resume_reason", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "retried_after")
    op.drop_column("jobs", "pause_requested")
    op.drop_column("attempts", "resume_reason")
    op.drop_column("attempts", "resume")
    op.drop_table("checkpoints")
