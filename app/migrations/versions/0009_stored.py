"""sums of what projects store, and indexes for what is asked of many rows"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

IS_BASE = sa.text("kind = 'base'")


def upgrade() -> None:
    stored = op.create_table(
        "stored",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_stored_project_id")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_stored")),
    )
    files = sa.table("files", sa.column("project_id"), sa.column("bytes"))
    models = sa.table("models", sa.column("project_id"), sa.column("kind"), sa.column("facts", sa.JSON()))
    tuned_bytes = sa.cast(models.c.facts["stored_bytes"].as_string(), sa.BigInteger())
    sizes = sa.union_all(
        sa.select(files.c.project_id, files.c.bytes),
        sa.select(models.c.project_id, tuned_bytes).where(models.c.kind != "base"),
    ).subquery()
    sums = sa.select(sizes.c.project_id, sa.func.coalesce(sa.func.sum(sizes.c.bytes), 0)).group_by(sizes.c.project_id)
    op.execute(sa.insert(stored).from_select(["project_id", "bytes"], sums))

    op.create_index("ix_models_tuned_newest", "models", ["project_id", "kind", "id"])
    op.create_index("ix_models_base_newest", "models", ["id"], postgresql_where=IS_BASE, sqlite_where=IS_BASE)
    op.create_index("ix_models_kind_status", "models", ["kind", "status"])
    op.drop_index("ix_models_project_id", "models")
    op.create_index("ix_datasets_newest", "datasets", ["project_id", "id"])
    op.drop_index("ix_datasets_project_id", "datasets")
    op.create_index("ix_usage_newest", "usage", ["project_id", "day", "id"])
    op.create_index("ix_usage_model_newest", "usage", ["project_id", "model", "day", "id"])


def downgrade() -> None:
    op.drop_index("ix_usage_model_newest", "usage")
    op.drop_index("ix_usage_newest", "usage")
    op.create_index("ix_datasets_project_id", "datasets", ["project_id"])
    op.drop_index("ix_datasets_newest", "datasets")
    op.create_index("ix_models_project_id", "models", ["project_id"])
    op.drop_index("ix_models_kind_status", "models")
    op.drop_index("ix_models_base_newest", "models")
    op.drop_index("ix_models_tuned_newest", "models")
    op.drop_table("stored")
