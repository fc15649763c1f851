"""Metrics as rows, and the indexes that filters and pages of a million versions walk along."""

import re
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLE = "version_metrics"
INDEXED = ("number", "job_id", "created_at")
BATCH_SIZE = 1000
# What text of a database cannot hold, as orchestrator/registry/dialect.py had it.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def upgrade() -> None:
    for column in INDEXED:
        op.create_index(op.f(f"ix_prompt_versions_{column}"), "prompt_versions", [column])
    op.create_table(
        TABLE,
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["prompt_versions.id"], name=op.f("fk_version_metrics_version_id")
        ),
        sa.PrimaryKeyConstraint("name", "version_id", name=op.f("pk_version_metrics")),
        sqlite_with_rowid=False,
    )
    for rows in _metrics():
        op.bulk_insert(_table(), rows)
    if op.get_bind().dialect.name == "sqlite":
        _protect_on_sqlite()
    else:
        _protect_on_postgresql()


def downgrade() -> None:
    op.drop_table(TABLE)
    for column in INDEXED:
        op.drop_index(op.f(f"ix_prompt_versions_{column}"), "prompt_versions")


def _table() -> sa.TableClause:
    return sa.table(
        TABLE, sa.column("name", sa.Text()), sa.column("version_id"), sa.column("value", sa.Float())
    )


def _metrics() -> Iterator[list[dict[str, Any]]]:
    """The rows of the versions that are there, in batches."""
    versions = sa.table("prompt_versions", sa.column("id"), sa.column("metrics", sa.JSON()))
    last = 0
    while True:
        query = sa.select(versions).where(versions.c.id > last).order_by(versions.c.id)
        found = op.get_bind().execute(query.limit(BATCH_SIZE)).all()
        if not found:
            return
        last = found[-1].id
        if rows := [row for id_, metrics in found for row in _rows(id_, metrics)]:
            yield rows


def _rows(version_id: int, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    values = {UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", key): metrics[key] for key in metrics}
    return [
        {"name": name, "version_id": version_id, "value": float(value)}
        for name, value in values.items()
        if isinstance(value, int | float)
    ]


def _protect_on_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {TABLE}_refuse_{verb.lower()} BEFORE {verb} ON {TABLE} "
            f"BEGIN SELECT RAISE(ABORT, '{TABLE} is append-only: {verb} is refused'); END"
        )
    # REPLACE deletes the old row without firing the trigger above.
    op.execute(
        f"CREATE TRIGGER {TABLE}_refuse_replace BEFORE INSERT ON {TABLE} "
        f"WHEN EXISTS (SELECT 1 FROM {TABLE} WHERE name = NEW.name "
        "AND version_id = NEW.version_id) "
        f"BEGIN SELECT RAISE(ABORT, '{TABLE} is append-only: REPLACE is refused'); END"
    )


def _protect_on_postgresql() -> None:
    op.execute(
        f"CREATE TRIGGER {TABLE}_refuse_change BEFORE UPDATE OR DELETE ON {TABLE} "
        "FOR EACH ROW EXECUTE FUNCTION tutti_refuse_change()"
    )
    op.execute(
        f"CREATE TRIGGER {TABLE}_refuse_truncate BEFORE TRUNCATE ON {TABLE} "
        "FOR EACH STATEMENT EXECUTE FUNCTION tutti_refuse_change()"
    )
