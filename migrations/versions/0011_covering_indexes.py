"""Versions are found by base, number or age without their rows being read: PostgreSQL's indexes
hold the id as well. SQLite's always do."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COLUMNS = ("base_fingerprint", "number", "created_at")


def upgrade() -> None:
    _index_again(["id"])


def downgrade() -> None:
    _index_again([])


def _index_again(include: list[str]) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for column in COLUMNS:
        name = op.f(f"ix_prompt_versions_{column}")
        op.drop_index(name, "prompt_versions")
        op.create_index(name, "prompt_versions", [column], postgresql_include=include)
