"""what a job's outcome reached beside its base"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("scorecard", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "scorecard")
