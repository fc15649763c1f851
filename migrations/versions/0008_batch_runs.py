"""Batch runs: a ledger of runs and their shards. On PostgreSQL a trainer may run its own."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

RUN_STATES = "state IN ('running', 'succeeded', 'failed', 'cancelled')"
SHARD_STATES = "state IN ('queued', 'claimed', 'done')"
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "batch_runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("input", sa.JSON(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("pins", sa.JSON(), nullable=False),
        sa.Column("bases", sa.JSON(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("shard_rows", sa.Integer(), nullable=False),
        sa.Column("num_threads", sa.Integer(), nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("num_shards", sa.Integer(), nullable=False),
        sa.Column("num_shards_done", sa.Integer(), nullable=False),
        sa.Column("num_rows", sa.BigInteger(), nullable=False),
        sa.Column("num_answered", sa.BigInteger(), nullable=False),
        sa.Column("num_errors", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("lease_holder", sa.Text()),
        sa.Column("lease_token", sa.Text()),
        sa.Column("lease_expires_at", TIME),
        sa.Column("error", sa.Text()),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("finished_at", TIME),
        sa.CheckConstraint(RUN_STATES, name=op.f("ck_batch_runs_known_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch_runs")),
    )
    op.create_index(op.f("ix_batch_runs_created_at"), "batch_runs", ["created_at"])
    op.create_index(op.f("ix_batch_runs_output"), "batch_runs", ["output"])
    op.create_table(
        "batch_shards",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("num_errors", sa.Integer(), nullable=False),
        sa.Column("file", sa.Text()),
        sa.Column("sha256", sa.Text()),
        sa.Column("num_bytes", sa.BigInteger()),
        sa.Column("seconds", sa.Float()),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.CheckConstraint(SHARD_STATES, name=op.f("ck_batch_shards_known_state")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["batch_runs.id"], name=op.f("fk_batch_shards_run_id_batch_runs")
        ),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_batch_shards")),
    )
    op.create_index(op.f("ix_batch_shards_run_id_state"), "batch_shards", ["run_id", "state"])
    if op.get_bind().dialect.name == "postgresql":
        _guard()


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for function in ("tutti_guard_batch()", "tutti_guard_batch_shard()"):
            op.execute(f"DROP FUNCTION {function} CASCADE")
        op.execute("DROP FUNCTION tutti_require_batch(text, text)")
    op.drop_table("batch_shards")
    op.drop_table("batch_runs")


def _guard() -> None:
    """Triggers, and the table privileges of a group that logins may have been given already."""
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    as_owner = f"SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp"
    for text in (REQUIRE, GUARD, GUARD_SHARD, GRANT):
        sql = text.replace("AS_OWNER", as_owner)
        op.get_bind().exec_driver_sql(sql.replace("%", "%%"))  # a lone % begins a parameter
    for table, function in {
        "batch_runs": "tutti_guard_batch",
        "batch_shards": "tutti_guard_batch_shard",
    }.items():
        op.execute(
            f"CREATE TRIGGER {table}_guard BEFORE INSERT OR UPDATE OR DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION {function}()"
        )


# A run is of many tasks and writes to none of them: a trainer of any may run its own. Versions,
# which are read alone, everybody with a role sees anyway.
REQUIRE = """
CREATE FUNCTION tutti_require_batch(run_owner text, doing text) RETURNS void
LANGUAGE plpgsql STABLE AS_OWNER AS $$
BEGIN
    IF tutti_rank(NULL) >= tutti_rank_of('controller') THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT 1 FROM access WHERE principal = session_user
        AND tutti_rank_of(role) >= tutti_rank_of('trainer')) THEN
        PERFORM tutti_require('trainer', NULL, doing);
    END IF;
    IF run_owner IS DISTINCT FROM session_user::text THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format(
            '%s may not %s of %s', session_user, doing, coalesce(run_owner, 'nobody')),
            HINT = 'Only its owner and a controller may.';
    END IF;
END $$
"""

# What a run was started with stays.
GUARD = """
CREATE FUNCTION tutti_guard_batch() RETURNS trigger LANGUAGE plpgsql AS_OWNER AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        PERFORM tutti_require_batch(NEW.owner, 'start or change a batch run');
    END IF;
    IF TG_OP <> 'INSERT' THEN
        PERFORM tutti_require_batch(OLD.owner, 'start or change a batch run');
    END IF;
    IF TG_OP = 'UPDATE' AND tutti_rank(NULL) < 100 THEN
        IF (NEW.id, NEW.source, NEW.input::text, NEW.settings::text, NEW.pins::text, NEW.output,
            NEW.created_at) IS DISTINCT FROM
            (OLD.id, OLD.source, OLD.input::text, OLD.settings::text, OLD.pins::text, OLD.output,
            OLD.created_at) THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format(
                '%s may not change what a batch run was started with', session_user);
        END IF;
    END IF;
    RETURN coalesce(NEW, OLD);
END $$
"""

GUARD_SHARD = """
CREATE FUNCTION tutti_guard_batch_shard() RETURNS trigger LANGUAGE plpgsql AS_OWNER AS $$
DECLARE
    found text;
BEGIN
    FOR found IN SELECT run_id FROM (VALUES (OLD.run_id), (NEW.run_id)) AS both_rows (run_id)
        WHERE run_id IS NOT NULL LOOP
        PERFORM tutti_require_batch(
            (SELECT owner FROM batch_runs WHERE id = found), 'change shards of a batch run');
    END LOOP;
    RETURN coalesce(NEW, OLD);
END $$
"""

GRANT = """
DO $$
DECLARE
    logins text := 'tutti_' || (SELECT oid FROM pg_database WHERE datname = current_database());
BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = logins) THEN
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON batch_runs, batch_shards TO %I', logins);
    END IF;
END $$
"""
