"""How the workers of a batch run hold its bases. NULL: whole, as all did before."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch_runs", sa.Column("zero_stage", sa.Integer()))


def downgrade() -> None:
    op.drop_column("batch_runs", "zero_stage")
