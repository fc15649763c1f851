"""The tables. migrations/ must make exactly these; a test compares the two.

`prompt_versions`, `version_metrics` and `promotions` are append-only: triggers of the migration
refuse every UPDATE and DELETE. A task's row is the lock that orders its version numbers and its
alias moves.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    UniqueConstraint,
    false,
    text,
)

from orchestrator.domain.batch_run import BatchState, ShardState
from orchestrator.domain.job import JobState
from orchestrator.registry.dialect import PlainText, UtcDateTime

#: Where alembic keeps the revision; its default name is MLflow's in a shared database.
VERSION_TABLE = "tutti_schema"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


# Only INTEGER gives SQLite its row id.
ROW_ID = BigInteger().with_variant(Integer(), "sqlite")


def _row_id() -> Column[int]:
    return Column("id", ROW_ID, primary_key=True)


def _text(name: str, refers_to: str | None = None, **options: Any) -> Column[str]:
    keys = [ForeignKey(refers_to)] if refers_to else []
    return Column(name, PlainText(), *keys, nullable=False, **options)


def _number(name: str, **options: Any) -> Column[int]:
    return Column(name, Integer(), nullable=False, **options)


def _flag(name: str, **options: Any) -> Column[bool]:
    return Column(name, Boolean(), nullable=False, **options)


def _json(name: str) -> Column[Any]:
    return Column(name, JSON(), nullable=False)


def _time(name: str, **options: Any) -> Column[datetime]:
    return Column(name, UtcDateTime(), nullable=False, **options)


base_models = Table(
    "base_models",
    metadata,
    _row_id(),  # of one name's rows the highest id is the current one
    _text("name"),
    _text("fingerprint"),
    _text("source"),
    _text("source_digest"),
    _json("files"),
    _text("architecture"),
    Column("num_parameters", BigInteger(), nullable=False),
    _number("hidden_size"),
    _number("max_length"),
    _time("created_at"),
    UniqueConstraint("name", "fingerprint"),
    Index(None, "fingerprint"),
    sqlite_autoincrement=True,
)

tasks = Table(
    "tasks",
    metadata,
    _text("name", primary_key=True),
    _number("last_version"),
)

prompt_versions = Table(
    "prompt_versions",
    metadata,
    _row_id(),
    _text("task", "tasks.name"),
    _number("number", index=True),
    _text("digest"),
    _json("config"),
    _json("metrics"),
    _json("artifacts"),
    _json("lineage"),
    _text("base_fingerprint", index=True),
    Column("job_id", PlainText(), index=True),
    _time("created_at", index=True),
    UniqueConstraint("task", "number"),
    UniqueConstraint("task", "digest"),
    sqlite_autoincrement=True,
)

version_metrics = Table(
    "version_metrics",
    metadata,
    _text("name", primary_key=True),
    Column(
        "version_id",
        ROW_ID,
        ForeignKey("prompt_versions.id"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("value", Float(), nullable=False),
    sqlite_with_rowid=False,  # the rows lie in the key's order: filters walk along it
)

aliases = Table(
    "aliases",
    metadata,
    _text("task", "tasks.name", primary_key=True),
    _text("alias", primary_key=True),
    Column("version_id", ROW_ID, ForeignKey("prompt_versions.id"), nullable=False, index=True),
    _number("generation"),
    _time("updated_at"),
)

promotions = Table(
    "promotions",
    metadata,
    _row_id(),
    _text("task", "tasks.name"),
    _text("alias"),
    _number("generation"),
    Column("from_version", Integer()),
    _number("to_version"),
    _text("actor"),
    _text("reason"),
    Column("gate", PlainText()),
    _time("promoted_at"),
    Column("overrode", PlainText()),
    Column("restores", Integer()),
    UniqueConstraint("task", "alias", "generation"),
    sqlite_autoincrement=True,
)

approvals = Table(
    "approvals",
    metadata,
    _row_id(),  # of one actor's rows for a version the highest id counts
    Column("version_id", ROW_ID, ForeignKey("prompt_versions.id"), nullable=False, index=True),
    _text("actor"),
    _flag("is_given"),
    _text("note"),
    _time("approved_at"),
    sqlite_autoincrement=True,
)

version_descriptions = Table(
    "version_descriptions",
    metadata,
    Column(
        "version_id",
        ROW_ID,
        ForeignKey("prompt_versions.id"),
        primary_key=True,
        autoincrement=False,
    ),
    _text("description"),
    _json("tags"),
)

description_changes = Table(
    "description_changes",
    metadata,
    _row_id(),
    Column("version_id", ROW_ID, ForeignKey("prompt_versions.id"), nullable=False, index=True),
    _text("field"),  # description or tags.KEY
    Column("old", PlainText()),
    Column("new", PlainText()),
    _text("actor"),
    _time("changed_at"),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    _text("id", primary_key=True),
    _text("idempotency_key", unique=True),
    _text("task", index=True),
    _text("base_fingerprint"),
    _json("submission"),
    _text("state"),
    _number("epoch"),
    _number("attempts"),
    _number("priority"),
    _text("owner"),
    Column("lease_holder", PlainText()),
    Column("lease_token", PlainText()),
    Column("lease_expires_at", UtcDateTime()),
    _json("progress"),
    Column("checkpoint", PlainText()),
    Column("error", PlainText()),
    Column("version", Integer()),
    Column("outcome", JSON(none_as_null=True)),
    _time("created_at"),
    Column("started_at", UtcDateTime()),
    Column("finished_at", UtcDateTime()),
    _number("max_attempts", server_default=text("3")),
    Column("time_limit_s", Float()),
    Column("not_before", UtcDateTime()),
    _number("faults", server_default=text("0")),
    Column("gang", PlainText(), index=True),  # of its lease; the attempts keep it
    _flag("is_pause_asked", server_default=false()),
    Column("log", PlainText()),
    Column("array", PlainText(), index=True),
    # What plans read, so that they need not read the submission.
    Column("zero_stage", Integer()),
    _flag("is_data_parallel", server_default=false()),
    Column("num_positions", Float(), nullable=False, server_default=text("0")),
    _number("num_steps", server_default=text("0")),
    Column("num_bytes", Float(), nullable=False, server_default=text("0")),
    CheckConstraint(f"state IN ({', '.join(repr(str(s)) for s in JobState)})", "known_state"),
    Index(None, "state", "priority", "created_at"),
    Index(None, "created_at"),
)

attempts = Table(
    "attempts",
    metadata,
    _text("job_id", "jobs.id", primary_key=True),
    _number("number", primary_key=True, autoincrement=False),
    _number("epoch"),
    _text("holder"),
    Column("outcome", PlainText()),
    Column("cause", PlainText()),
    _time("started_at"),
    Column("finished_at", UtcDateTime()),
    Column("fault", PlainText()),
    Column("gang", PlainText()),
)

job_dependencies = Table(
    "job_dependencies",
    metadata,
    _text("job_id", "jobs.id", primary_key=True),
    _text("after_id", "jobs.id", primary_key=True, index=True),
)

job_log = Table(
    "job_log",
    metadata,
    Column("number", ROW_ID, primary_key=True),  # of all jobs' lines; it grows along each job's
    _text("job_id", "jobs.id"),
    _time("at"),
    _text("text"),
    Index(None, "job_id", "number"),
    sqlite_autoincrement=True,
)

quotas = Table(
    "quotas",
    metadata,
    _text("owner", primary_key=True),
    Column("max_running", Integer()),
    Column("share", Float(), nullable=False),
    CheckConstraint("share > 0", "positive_share"),
)

leadership = Table(
    "leadership",
    metadata,
    _text("name", primary_key=True),
    Column("holder", PlainText()),  # none: resigned
    _number("term"),
    _time("expires_at"),
)

gangs = Table(
    "gangs",
    metadata,
    _text("name", primary_key=True),
    _text("base_fingerprint"),
    _number("zero_stage"),
    _text("sharding"),
    _text("holder"),
    Column("stage", PlainText()),
    _number("num_workers"),
    _flag("is_drain_asked"),
    Column("step_s", Float(), nullable=False),
    Column("tokens_per_s", Float(), nullable=False),
    Column("error", PlainText()),
    _time("started_at"),
    _time("seen_at"),
    Column("ended_at", UtcDateTime(), index=True),
)

outbox = Table(
    "outbox",
    metadata,
    _row_id(),
    _text("kind"),
    _json("payload"),
    _number("attempts"),
    Column("last_error", PlainText()),
    _time("created_at"),
    Column("delivered_at", UtcDateTime(), index=True),
    sqlite_autoincrement=True,
)

mlflow_links = Table(
    "mlflow_links",
    metadata,
    Column(
        "version_id",
        ROW_ID,
        ForeignKey("prompt_versions.id"),
        primary_key=True,
        autoincrement=False,
    ),
    _text("run_id"),
    Column("model_version", PlainText()),
)

access = Table(
    "access",
    metadata,
    _text("principal", primary_key=True),
    _text("task_pattern", primary_key=True),
    _text("role"),
)

batch_runs = Table(
    "batch_runs",
    metadata,
    _text("id", primary_key=True),
    _text("state"),
    _text("owner"),
    _text("source"),  # for people; `input` holds files and shards
    _json("input"),
    _json("settings"),
    _json("pins"),
    _json("bases"),
    _text("output", index=True),
    _text("format"),
    _number("shard_rows"),
    _number("num_threads"),
    _text("code_version"),
    _number("num_shards"),
    _number("num_shards_done"),
    Column("num_rows", BigInteger(), nullable=False),
    Column("num_answered", BigInteger(), nullable=False),
    Column("num_errors", BigInteger(), nullable=False),
    _number("epoch"),
    Column("lease_holder", PlainText()),
    Column("lease_token", PlainText()),
    Column("lease_expires_at", UtcDateTime()),
    Column("error", PlainText()),
    Column("seconds", Float(), nullable=False),
    _time("created_at", index=True),
    Column("finished_at", UtcDateTime()),
    CheckConstraint(f"state IN ({', '.join(repr(str(s)) for s in BatchState)})", "known_state"),
)

batch_shards = Table(
    "batch_shards",
    metadata,
    _text("run_id", "batch_runs.id", primary_key=True),
    _number("number", primary_key=True, autoincrement=False),
    _text("state"),
    _number("epoch"),
    Column("holder", PlainText()),
    _number("num_rows"),
    _number("num_errors"),
    Column("file", PlainText()),
    Column("sha256", PlainText()),
    Column("num_bytes", BigInteger()),
    Column("seconds", Float()),
    _json("counts"),
    CheckConstraint(f"state IN ({', '.join(repr(str(s)) for s in ShardState)})", "known_state"),
    Index(None, "run_id", "state"),
)
