"""indexes to find datasets and jobs by their names"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_datasets_name", "datasets", ["project_id", "name"])
    op.create_index("ix_jobs_name", "jobs", ["project_id", "name"])


def downgrade() -> None:
    op.drop_index("ix_jobs_name", "jobs")
    op.drop_index("ix_datasets_name", "datasets")
