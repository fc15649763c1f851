"""An alias can be taken away: a promotion to no version. On PostgreSQL who may promote may do so.

An alias goes with its row of the audit, as it moves with one.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _set_nullable(True)
    if op.get_bind().dialect.name == "postgresql":
        _replace(CHECK_MOVE)
        _execute(GRANT)
        _execute(
            "CREATE TRIGGER aliases_guard_delete BEFORE DELETE ON aliases "
            "FOR EACH ROW EXECUTE FUNCTION tutti_guard('promoter', 'task', '', '', '')"
        )
        _execute(
            "CREATE CONSTRAINT TRIGGER aliases_check_removal AFTER DELETE ON aliases "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tutti_check_move()"
        )


def downgrade() -> None:
    _require_none_removed()
    if op.get_bind().dialect.name == "postgresql":
        _execute("DROP TRIGGER aliases_check_removal ON aliases")
        _execute("DROP TRIGGER aliases_guard_delete ON aliases")
        _execute(GRANT.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))
        _replace(OLD_CHECK_MOVE)
    _set_nullable(False)


def _set_nullable(is_nullable: bool) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("promotions", "to_version", nullable=is_nullable)
        return
    # SQLite makes the table anew, and its triggers go with the old one.
    query = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'promotions'"
    triggers = op.get_bind().execute(sa.text(query)).scalars().all()
    options = {"sqlite_autoincrement": True}
    with op.batch_alter_table("promotions", recreate="always", table_kwargs=options) as table:
        table.alter_column("to_version", existing_type=sa.Integer(), nullable=is_nullable)
    for trigger in triggers:
        op.execute(trigger)


def _require_none_removed() -> None:
    query = sa.text("SELECT count(*) FROM promotions WHERE to_version IS NULL")
    num_removed = op.get_bind().execute(query).scalar_one()
    if num_removed:
        raise RuntimeError(
            f"the schema 0008 cannot say that an alias was taken away, which happened "
            f"{num_removed} times: restore a backup of that schema instead"
        )


def _replace(check: str) -> None:
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    as_owner = f"SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp"
    _execute(check.replace("AS_OWNER", as_owner))


def _execute(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql.replace("%", "%%"))  # a lone % begins a parameter


# An alias moves or goes with its row of the audit, and the audit has no row without its move.
CHECK_MOVE = """
CREATE OR REPLACE FUNCTION tutti_check_move() RETURNS trigger LANGUAGE plpgsql AS_OWNER AS $$
DECLARE
    of_task CONSTANT text := coalesce(NEW.task, OLD.task);
    of_alias CONSTANT text := coalesce(NEW.alias, OLD.alias);
    turn CONSTANT integer := coalesce(NEW.generation, OLD.generation + 1);
    is_whole boolean;
BEGIN
    IF tutti_rank(NULL) >= 100 THEN
        RETURN NULL;
    END IF;
    SELECT NOT EXISTS (
        SELECT 1 FROM promotions AS later
        WHERE (later.task, later.alias) = (of_task, of_alias) AND later.generation > turn) AND (
        CASE WHEN turn = 1 THEN move.from_version IS NULL
             ELSE before.generation IS NOT NULL
                AND move.from_version IS NOT DISTINCT FROM before.to_version END) AND (
        CASE WHEN move.to_version IS NULL
             THEN move.from_version IS NOT NULL AND aliases.task IS NULL
             ELSE aliases.generation = turn AND version.number = move.to_version END)
    INTO is_whole
    FROM promotions AS move
    LEFT JOIN promotions AS before ON (before.task, before.alias, before.generation)
        = (of_task, of_alias, turn - 1)
    LEFT JOIN aliases ON (aliases.task, aliases.alias) = (of_task, of_alias)
    LEFT JOIN prompt_versions AS version ON version.id = aliases.version_id
        AND version.task = aliases.task
    WHERE (move.task, move.alias, move.generation) = (of_task, of_alias, turn);
    IF NOT coalesce(is_whole, false) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format(
            '%s may not move %s@%s without the row of promotions that says so, nor write that '
            'row without the move', session_user, of_task, of_alias);
    END IF;
    RETURN NULL;
END $$
"""

OLD_CHECK_MOVE = """
CREATE OR REPLACE FUNCTION tutti_check_move() RETURNS trigger LANGUAGE plpgsql AS_OWNER AS $$
DECLARE
    is_whole boolean;
BEGIN
    IF tutti_rank(NULL) >= 100 THEN
        RETURN NULL;
    END IF;
    SELECT move.to_version = version.number AND NOT EXISTS (
        SELECT 1 FROM promotions AS later
        WHERE (later.task, later.alias) = (move.task, move.alias)
            AND later.generation > move.generation) AND (
        CASE WHEN move.generation = 1 THEN move.from_version IS NULL
             ELSE move.from_version = before.to_version END)
    INTO is_whole
    FROM aliases
    JOIN prompt_versions AS version ON version.id = aliases.version_id
        AND version.task = aliases.task
    JOIN promotions AS move ON (move.task, move.alias, move.generation)
        = (aliases.task, aliases.alias, aliases.generation)
    LEFT JOIN promotions AS before ON (before.task, before.alias, before.generation)
        = (aliases.task, aliases.alias, aliases.generation - 1)
    WHERE aliases.task = NEW.task AND aliases.alias = NEW.alias
        AND aliases.generation = NEW.generation;
    IF NOT coalesce(is_whole, false) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format(
            '%s may not move %s@%s without the row of promotions that says so, nor write that '
            'row without the move', session_user, NEW.task, NEW.alias);
    END IF;
    RETURN NULL;
END $$
"""

# The table privilege of a group that logins may have been given already.
GRANT = """
DO $$
DECLARE
    logins text := 'tutti_' || (SELECT oid FROM pg_database WHERE datname = current_database());
BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = logins) THEN
        EXECUTE format('GRANT DELETE ON aliases TO %I', logins);
    END IF;
END $$
"""
