"""What PostgreSQL lets everybody with a role touch at all: the table privileges of their group.

Which rows, the triggers of migrations 0007 to 0009 decide. Nobody of the group owns anything, so
nobody can drop, alter, truncate or disable; history is only added to. The group is of one database,
and is named by its oid: several Tutti databases share a server.
"""

from sqlalchemy import Connection, text

from orchestrator.registry.tables import VERSION_TABLE, metadata

#: What may be done beyond reading; columns where not all of a row may change.
_ADD = ("INSERT",)
_KEEP = ("INSERT", "UPDATE")
_ALL = ("INSERT", "UPDATE", "DELETE")
_WRITES: dict[str, tuple[str, ...]] = {
    "access": _ALL,
    "base_models": _ALL,
    "quotas": _ALL,
    "tasks": ("INSERT", "UPDATE (last_version)"),
    "prompt_versions": _ADD,
    "version_metrics": _ADD,
    "mlflow_links": _ALL,
    "leadership": _KEEP,
    "gangs": _KEEP,
    "outbox": ("INSERT", "UPDATE (attempts, last_error, delivered_at)"),
    "aliases": ("INSERT", "UPDATE (version_id, generation, updated_at)", "DELETE"),
    "promotions": _ADD,
    "approvals": _ADD,
    "version_descriptions": _KEEP,
    "description_changes": _ADD,
    "jobs": _KEEP,
    "attempts": _KEEP,
    "job_log": ("INSERT", "DELETE"),
    "job_dependencies": ("INSERT", "DELETE"),
    "batch_runs": _KEEP,
    "batch_shards": _KEEP,
}


def group_name(connection: Connection) -> str:
    """The group role of this database."""
    query = text("SELECT 'tutti_' || oid FROM pg_database WHERE datname = current_database()")
    return str(connection.execute(query).scalar_one())


def prepare_group(connection: Connection) -> str:
    """Make the group if it is not there, and give it its privileges; return its name."""
    group = group_name(connection)
    known = text("SELECT 1 FROM pg_roles WHERE rolname = :name")
    if connection.execute(known, {"name": group}).first() is None:
        connection.execute(text(f"CREATE ROLE {group} NOLOGIN"))
    connection.execute(text(f"GRANT SELECT ON {VERSION_TABLE} TO {group}"))
    for table in metadata.sorted_tables:
        verbs = ", ".join(("SELECT", *_WRITES.get(table.name, ())))
        connection.execute(text(f"GRANT {verbs} ON {table.name} TO {group}"))
        _grant_numbers(connection, table.name, group)
    return group


def _grant_numbers(connection: Connection, table: str, group: str) -> None:
    column = metadata.tables[table].autoincrement_column
    if column is None:
        return
    query = text("SELECT pg_get_serial_sequence(:table, :column)")
    found = connection.execute(query, {"table": table, "column": column.name}).scalar_one()
    if found is not None:
        connection.execute(text(f"GRANT USAGE, SELECT ON SEQUENCE {found} TO {group}"))
