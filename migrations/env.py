"""Runs the migrations on the connection that orchestrator/registry/migrate.py gives, inside its
transaction. There is no alembic.ini: `tutti db upgrade` is the way in.
"""

from alembic import context

from orchestrator.registry.tables import VERSION_TABLE, metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
