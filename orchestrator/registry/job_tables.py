"""The tables of jobs, and of the controllers and gangs that train them."""

from sqlalchemy import JSON, CheckConstraint, Column, Float, Index, Integer, Table, false, text

from orchestrator.domain.job import JobState
from orchestrator.registry.columns import (
    ROW_ID,
    flag_column,
    json_column,
    metadata,
    number_column,
    text_column,
    time_column,
)
from orchestrator.registry.dialect import PlainText, UtcDateTime

jobs = Table(
    "jobs",
    metadata,
    text_column("id", primary_key=True),
    text_column("idempotency_key", unique=True),
    text_column("task", index=True),
    text_column("base_fingerprint"),
    json_column("submission"),
    text_column("state"),
    number_column("epoch"),
    number_column("attempts"),
    number_column("priority"),
    text_column("owner"),
    Column("lease_holder", PlainText()),
    Column("lease_token", PlainText()),
    Column("lease_expires_at", UtcDateTime()),
    json_column("progress"),
    Column("checkpoint", PlainText()),
    Column("error", PlainText()),
    Column("version", Integer()),
    Column("outcome", JSON(none_as_null=True)),
    time_column("created_at"),
    Column("started_at", UtcDateTime()),
    Column("finished_at", UtcDateTime()),
    number_column("max_attempts", server_default=text("3")),
    Column("time_limit_s", Float()),
    Column("not_before", UtcDateTime()),
    number_column("faults", server_default=text("0")),
    Column("gang", PlainText(), index=True),  # of its lease; the attempts keep it
    flag_column("is_pause_asked", server_default=false()),
    Column("log", PlainText()),
    Column("array", PlainText(), index=True),
    # What plans read, so that they need not read the submission.
    Column("zero_stage", Integer()),
    flag_column("is_data_parallel", server_default=false()),
    Column("num_positions", Float(), nullable=False, server_default=text("0")),
    number_column("num_steps", server_default=text("0")),
    Column("num_bytes", Float(), nullable=False, server_default=text("0")),
    CheckConstraint(f"state IN ({', '.join(repr(str(s)) for s in JobState)})", "known_state"),
    Index(None, "state", "priority", "created_at"),
    Index(None, "created_at"),
)

attempts = Table(
    "attempts",
    metadata,
    text_column("job_id", "jobs.id", primary_key=True),
    number_column("number", primary_key=True, autoincrement=False),
    number_column("epoch"),
    text_column("holder"),
    Column("outcome", PlainText()),
    Column("cause", PlainText()),
    time_column("started_at"),
    Column("finished_at", UtcDateTime()),
    Column("fault", PlainText()),
    Column("gang", PlainText()),
)

job_dependencies = Table(
    "job_dependencies",
    metadata,
    text_column("job_id", "jobs.id", primary_key=True),
    text_column("after_id", "jobs.id", primary_key=True, index=True),
)

job_log = Table(
    "job_log",
    metadata,
    Column("number", ROW_ID, primary_key=True),  # of all jobs' lines; it grows along each job's
    text_column("job_id", "jobs.id"),
    time_column("at"),
    text_column("text"),
    Index(None, "job_id", "number"),
    sqlite_autoincrement=True,
)

quotas = Table(
    "quotas",
    metadata,
    text_column("owner", primary_key=True),
    Column("max_running", Integer()),
    Column("share", Float(), nullable=False),
    CheckConstraint("share > 0", "positive_share"),
)

leadership = Table(
    "leadership",
    metadata,
    text_column("name", primary_key=True),
    Column("holder", PlainText()),  # none: resigned
    number_column("term"),
    time_column("expires_at"),
)

gangs = Table(
    "gangs",
    metadata,
    text_column("name", primary_key=True),
    text_column("base_fingerprint"),
    number_column("zero_stage"),
    text_column("sharding"),
    text_column("holder"),
    Column("stage", PlainText()),
    number_column("num_workers"),
    flag_column("is_drain_asked"),
    Column("step_s", Float(), nullable=False),
    Column("tokens_per_s", Float(), nullable=False),
    Column("error", PlainText()),
    time_column("started_at"),
    time_column("seen_at"),
    Column("ended_at", UtcDateTime(), index=True),
)
