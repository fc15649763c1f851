"""The ledger of batch runs: runs and their shards."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Float, Index, Integer, Table

from orchestrator.domain.batch_run import BatchState, ShardState
from orchestrator.registry.columns import (
    json_column,
    metadata,
    number_column,
    text_column,
    time_column,
)
from orchestrator.registry.dialect import PlainText, UtcDateTime

batch_runs = Table(
    "batch_runs",
    metadata,
    text_column("id", primary_key=True),
    text_column("state"),
    text_column("owner"),
    text_column("source"),  # for people; `input` holds files and shards
    json_column("input"),
    json_column("settings"),
    json_column("pins"),
    json_column("bases"),
    text_column("output", index=True),
    text_column("format"),
    number_column("shard_rows"),
    number_column("num_threads"),
    text_column("code_version"),
    number_column("num_shards"),
    number_column("num_shards_done"),
    Column("num_rows", BigInteger(), nullable=False),
    Column("num_answered", BigInteger(), nullable=False),
    Column("num_errors", BigInteger(), nullable=False),
    number_column("epoch"),
    Column("lease_holder", PlainText()),
    Column("lease_token", PlainText()),
    Column("lease_expires_at", UtcDateTime()),
    Column("error", PlainText()),
    Column("seconds", Float(), nullable=False),
    time_column("created_at", index=True),
    Column("finished_at", UtcDateTime()),
    Column("zero_stage", Integer()),  # None: 0
    CheckConstraint(f"state IN ({', '.join(repr(str(s)) for s in BatchState)})", "known_state"),
)

batch_shards = Table(
    "batch_shards",
    metadata,
    text_column("run_id", "batch_runs.id", primary_key=True),
    number_column("number", primary_key=True, autoincrement=False),
    text_column("state"),
    number_column("epoch"),
    Column("holder", PlainText()),
    number_column("num_rows"),
    number_column("num_errors"),
    Column("file", PlainText()),
    Column("sha256", PlainText()),
    Column("num_bytes", BigInteger()),
    Column("seconds", Float()),
    json_column("counts"),
    CheckConstraint(f"state IN ({', '.join(repr(str(s)) for s in ShardState)})", "known_state"),
    Index(None, "run_id", "state"),
)
