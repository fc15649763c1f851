"""The tables of base models, versions, aliases, their history, and what MLflow is told.

`prompt_versions`, `version_metrics` and `promotions` are append-only: triggers of the migration
refuse every UPDATE and DELETE. A task's row is the lock that orders its version numbers and its
alias moves.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    Table,
    UniqueConstraint,
)

from orchestrator.registry.columns import (
    ROW_ID,
    flag_column,
    json_column,
    metadata,
    number_column,
    row_id,
    text_column,
    time_column,
)
from orchestrator.registry.dialect import PlainText, UtcDateTime

base_models = Table(
    "base_models",
    metadata,
    row_id(),  # of one name's rows the highest id is the current one
    text_column("name"),
    text_column("fingerprint"),
    text_column("source"),
    text_column("source_digest"),
    json_column("files"),
    text_column("architecture"),
    Column("num_parameters", BigInteger(), nullable=False),
    number_column("hidden_size"),
    number_column("max_length"),
    time_column("created_at"),
    UniqueConstraint("name", "fingerprint"),
    Index(None, "fingerprint"),
    sqlite_autoincrement=True,
)

tasks = Table(
    "tasks",
    metadata,
    text_column("name", primary_key=True),
    number_column("last_version"),
)

prompt_versions = Table(
    "prompt_versions",
    metadata,
    row_id(),
    text_column("task", "tasks.name"),
    number_column("number"),
    text_column("digest"),
    json_column("config"),
    json_column("metrics"),
    json_column("artifacts"),
    json_column("lineage"),
    text_column("base_fingerprint"),
    Column("job_id", PlainText(), index=True),
    time_column("created_at"),
    # The rows are wide: what filters look up is found without them (SQLite's always hold the id).
    Index(None, "base_fingerprint", postgresql_include=["id"]),
    Index(None, "number", postgresql_include=["id"]),
    Index(None, "created_at", postgresql_include=["id"]),
    UniqueConstraint("task", "number"),
    UniqueConstraint("task", "digest"),
    sqlite_autoincrement=True,
)

version_metrics = Table(
    "version_metrics",
    metadata,
    text_column("name", primary_key=True),
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
    text_column("task", "tasks.name", primary_key=True),
    text_column("alias", primary_key=True),
    Column("version_id", ROW_ID, ForeignKey("prompt_versions.id"), nullable=False, index=True),
    number_column("generation"),
    time_column("updated_at"),
)

promotions = Table(
    "promotions",
    metadata,
    row_id(),
    text_column("task", "tasks.name"),
    text_column("alias"),
    number_column("generation"),
    Column("from_version", Integer()),
    Column("to_version", Integer()),  # none: the alias was taken away
    text_column("actor"),
    text_column("reason"),
    Column("gate", PlainText()),
    time_column("promoted_at"),
    Column("overrode", PlainText()),
    Column("restores", Integer()),
    UniqueConstraint("task", "alias", "generation"),
    sqlite_autoincrement=True,
)

approvals = Table(
    "approvals",
    metadata,
    row_id(),  # of one actor's rows for a version the highest id counts
    Column("version_id", ROW_ID, ForeignKey("prompt_versions.id"), nullable=False, index=True),
    text_column("actor"),
    flag_column("is_given"),
    text_column("note"),
    time_column("approved_at"),
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
    text_column("description"),
    json_column("tags"),
)

description_changes = Table(
    "description_changes",
    metadata,
    row_id(),
    Column("version_id", ROW_ID, ForeignKey("prompt_versions.id"), nullable=False, index=True),
    text_column("field"),  # description or tags.KEY
    Column("old", PlainText()),
    Column("new", PlainText()),
    text_column("actor"),
    time_column("changed_at"),
    sqlite_autoincrement=True,
)

outbox = Table(
    "outbox",
    metadata,
    row_id(),
    text_column("kind"),
    json_column("payload"),
    number_column("attempts"),
    Column("last_error", PlainText()),
    time_column("created_at"),
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
    text_column("run_id"),
    Column("model_version", PlainText()),
)

access = Table(
    "access",
    metadata,
    text_column("principal", primary_key=True),
    text_column("task_pattern", primary_key=True),
    text_column("role"),
)
