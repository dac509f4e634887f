"""What attempts took of their device, and jobs that have to run alone."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("memory_peak", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("memory_key", sa.String(length=16), nullable=True))
        batch_op.create_index(batch_op.f("ix_attempts_memory_key"), ["memory_key"])
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("alone", sa.Boolean(), nullable=False, server_default=sa.false()))
