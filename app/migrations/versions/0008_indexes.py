"""indexes of the few rows that are live among many that have ended"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

LIVE = sa.text("status = 'queued' OR status = 'running' OR status = 'paused'")
DOWNLOADING = sa.text("status = 'downloading'")


def upgrade() -> None:
    op.create_index("ix_jobs_project_newest", "jobs", ["project_id", "id"])
    op.create_index("ix_jobs_live", "jobs", ["status", "id"], postgresql_where=LIVE, sqlite_where=LIVE)
    op.create_index("ix_models_name", "models", ["name"])
    op.create_index("ix_models_downloading", "models", ["id"], postgresql_where=DOWNLOADING, sqlite_where=DOWNLOADING)


def downgrade() -> None:
    op.drop_index("ix_models_downloading", "models")
    op.drop_index("ix_models_name", "models")
    op.drop_index("ix_jobs_live", "jobs")
    op.drop_index("ix_jobs_project_newest", "jobs")
