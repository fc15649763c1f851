"""Job arrays: the trials of a sweep as jobs of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("array", sa.Text()))
    op.create_index(op.f("ix_jobs_array"), "jobs", ["array"])


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_array"), "jobs")
    op.drop_column("jobs", "array")
