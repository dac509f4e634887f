"""How much memory a run was estimated to take, and how much it took."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("memory_estimate", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("memory_peak", sa.BigInteger(), nullable=True))
