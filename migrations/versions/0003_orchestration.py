"""Scheduling: what plans read of a job stands in columns; dependencies, the jobs' logs, quotas, the
controllers' leader, and the gangs."""

import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES = ("gangs", "leadership", "quotas", "job_log", "job_dependencies")


def upgrade() -> None:
    op.execute("ALTER TABLE jobs RENAME COLUMN actor TO owner")
    for column in _job_columns():
        op.add_column("jobs", column)
    for column in _attempt_columns():
        op.add_column("attempts", column)
    _fill_jobs()
    op.create_index(op.f("ix_jobs_created_at"), "jobs", ["created_at"])
    op.create_index(op.f("ix_jobs_gang"), "jobs", ["gang"])
    _create_job_tables()
    _create_cluster_tables()


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    op.drop_index(op.f("ix_jobs_gang"), "jobs")
    op.drop_index(op.f("ix_jobs_created_at"), "jobs")
    for column in _attempt_columns():
        op.drop_column("attempts", column.name)
    for column in _job_columns():
        op.drop_column("jobs", column.name)
    op.execute("ALTER TABLE jobs RENAME COLUMN owner TO actor")


def _job_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("max_attempts", sa.Integer(), nullable=False, server_default=sa.text("3")),
        sa.Column("time_limit_s", sa.Float()),
        sa.Column("not_before", sa.DateTime(timezone=True)),
        sa.Column("faults", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("gang", sa.Text()),
        sa.Column("is_pause_asked", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("log", sa.Text()),
        sa.Column("zero_stage", sa.Integer()),
        sa.Column("is_data_parallel", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("num_positions", sa.Float(), nullable=False, server_default=sa.text("0")),
        sa.Column("num_steps", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("num_bytes", sa.Float(), nullable=False, server_default=sa.text("0")),
    ]


def _attempt_columns() -> list[sa.Column[Any]]:
    return [sa.Column("fault", sa.Text()), sa.Column("gang", sa.Text())]


def _create_job_tables() -> None:
    op.create_table(
        "job_dependencies",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("after_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_dependencies_job_id")),
        sa.ForeignKeyConstraint(
            ["after_id"], ["jobs.id"], name=op.f("fk_job_dependencies_after_id")
        ),
        sa.PrimaryKeyConstraint("job_id", "after_id", name=op.f("pk_job_dependencies")),
    )
    op.create_index(op.f("ix_job_dependencies_after_id"), "job_dependencies", ["after_id"])
    op.create_table(
        "job_log",
        sa.Column("number", ROW_ID, nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_log_job_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_job_log")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_job_log_job_id_number"), "job_log", ["job_id", "number"])


def _create_cluster_tables() -> None:
    op.create_table(
        "quotas",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("max_running", sa.Integer()),
        sa.Column("share", sa.Float(), nullable=False),
        sa.CheckConstraint("share > 0", name=op.f("ck_quotas_positive_share")),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_quotas")),
    )
    op.create_table(
        "leadership",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("term", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leadership")),
    )
    op.create_table(
        "gangs",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("base_fingerprint", sa.Text(), nullable=False),
        sa.Column("zero_stage", sa.Integer(), nullable=False),
        sa.Column("sharding", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text()),
        sa.Column("num_workers", sa.Integer(), nullable=False),
        sa.Column("is_drain_asked", sa.Boolean(), nullable=False),
        sa.Column("step_s", sa.Float(), nullable=False),
        sa.Column("tokens_per_s", sa.Float(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_gangs")),
    )
    op.create_index(op.f("ix_gangs_ended_at"), "gangs", ["ended_at"])


def _fill_jobs() -> None:
    """What plans read, from each job's submission."""
    planned = ("zero_stage", "is_data_parallel", "num_positions", "num_steps")
    jobs = sa.table(
        "jobs",
        sa.column("id", sa.Text()),
        sa.column("submission", sa.JSON()),
        *(
            sa.column(column.name, column.type)
            for column in _job_columns()
            if column.name in planned
        ),
    )
    connection = op.get_bind()
    values = [
        {"job": row.id, **_planning(row.submission)}
        for row in connection.execute(sa.select(jobs.c.id, jobs.c.submission))
    ]
    statement = (
        sa.update(jobs)
        .where(jobs.c.id == sa.bindparam("job"))
        .values({name: sa.bindparam(f"new_{name}") for name in planned})
    )
    if values:
        connection.execute(statement, values)


def _planning(submission: Mapping[str, Any]) -> dict[str, Any]:
    spec = submission["spec"]
    sharding = spec.get("sharding") or {}
    return {
        "new_zero_stage": sharding.get("zero_stage"),
        "new_is_data_parallel": bool(sharding.get("data_parallel", False)),
        "new_num_positions": submission["num_positions"],
        "new_num_steps": _num_steps(spec),
    }


def _num_steps(spec: Mapping[str, Any]) -> int:
    """The spec's steps, or at most how many its sweep's longest trial has."""
    over = (spec.get("sweep") or {}).get("over", {})
    swept = over.get("training.steps", [spec["training"]["steps"]])
    return math.floor(swept["high"]) if isinstance(swept, Mapping) else max(swept)
