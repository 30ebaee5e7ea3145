"""what a checkpoint's validation measured"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("validation_loss", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("checkpoints", "validation_loss")
