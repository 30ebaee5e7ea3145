"""by which code an attempt failed or was lost"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("code", sa.String(40), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "code")
