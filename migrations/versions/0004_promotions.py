"""Promotions say what they overrode and which move they take back; approvals; descriptions and tags
of versions with their history.

Approvals and changes of descriptions are history, as versions and promotions are.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
APPEND_ONLY = ("approvals", "description_changes")


def upgrade() -> None:
    op.add_column("promotions", sa.Column("overrode", sa.Text()))
    op.add_column("promotions", sa.Column("restores", sa.Integer()))
    _create_approvals()
    _create_descriptions()
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for table in APPEND_ONLY:
        (_protect_on_sqlite if is_sqlite else _protect_on_postgresql)(table)


def downgrade() -> None:
    for table in ("description_changes", "version_descriptions", "approvals"):
        op.drop_table(table)
    op.drop_column("promotions", "restores")
    op.drop_column("promotions", "overrode")


def _create_approvals() -> None:
    op.create_table(
        "approvals",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("version_id", ROW_ID, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("is_given", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("approved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["prompt_versions.id"], name=op.f("fk_approvals_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_approvals_version_id"), "approvals", ["version_id"])


def _create_descriptions() -> None:
    op.create_table(
        "version_descriptions",
        sa.Column("version_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["prompt_versions.id"], name=op.f("fk_version_descriptions_version_id")
        ),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_version_descriptions")),
    )
    op.create_table(
        "description_changes",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("version_id", ROW_ID, nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("old", sa.Text()),
        sa.Column("new", sa.Text()),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["prompt_versions.id"], name=op.f("fk_description_changes_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_description_changes")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_description_changes_version_id"), "description_changes", ["version_id"]
    )


def _protect_on_sqlite(table: str) -> None:
    # REPLACE deletes the old row without firing the trigger on DELETE.
    for verb, when in {
        "UPDATE": f"BEFORE UPDATE ON {table}",
        "DELETE": f"BEFORE DELETE ON {table}",
        "REPLACE": f"BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)",
    }.items():
        op.execute(
            f"CREATE TRIGGER {table}_refuse_{verb.lower()} {when} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: {verb} is refused'); END"
        )


def _protect_on_postgresql(table: str) -> None:
    for name, when in {
        "change": "BEFORE UPDATE OR DELETE ON {} FOR EACH ROW",
        "truncate": "BEFORE TRUNCATE ON {} FOR EACH STATEMENT",
    }.items():
        op.execute(
            f"CREATE TRIGGER {table}_refuse_{name} {when.format(table)} "
            "EXECUTE FUNCTION tutti_refuse_change()"
        )
