"""All tables. migrations/ must make exactly these; a test compares the two."""

from orchestrator.registry.batch_tables import batch_runs, batch_shards
from orchestrator.registry.columns import REVISION, ROW_ID, VERSION_TABLE, metadata
from orchestrator.registry.job_tables import (
    attempts,
    gangs,
    job_dependencies,
    job_log,
    jobs,
    leadership,
    quotas,
)
from orchestrator.registry.prompt_tables import (
    access,
    aliases,
    approvals,
    base_models,
    description_changes,
    mlflow_links,
    outbox,
    promotions,
    prompt_versions,
    tasks,
    version_descriptions,
    version_metrics,
)

__all__ = [
    "REVISION",
    "ROW_ID",
    "VERSION_TABLE",
    "access",
    "aliases",
    "approvals",
    "attempts",
    "base_models",
    "batch_runs",
    "batch_shards",
    "description_changes",
    "gangs",
    "job_dependencies",
    "job_log",
    "jobs",
    "leadership",
    "metadata",
    "mlflow_links",
    "outbox",
    "promotions",
    "prompt_versions",
    "quotas",
    "tasks",
    "version_descriptions",
    "version_metrics",
]
