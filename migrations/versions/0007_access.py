"""Roles by task pattern. On PostgreSQL triggers hold everybody to them but the tables' owner.

Every trigger asks `tutti_rank`, which runs as the owner and goes by `session_user`: neither SET
ROLE nor what a client says of itself changes who is asked for.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# table, verbs, role, where the row says its task ("": it is of no task), who and when columns
RULES = (
    ("access", "INSERT OR UPDATE OR DELETE", "admin", "", "", ""),
    ("base_models", "INSERT OR UPDATE OR DELETE", "admin", "", "", ""),
    ("quotas", "INSERT OR UPDATE OR DELETE", "admin", "", "", ""),
    ("tasks", "INSERT OR UPDATE", "controller", "name", "", ""),
    ("prompt_versions", "INSERT", "controller", "task", "", ""),
    ("version_metrics", "INSERT", "controller", "version_id", "", ""),
    ("mlflow_links", "INSERT OR UPDATE OR DELETE", "controller", "version_id", "", ""),
    ("leadership", "INSERT OR UPDATE", "controller", "", "", ""),
    ("gangs", "INSERT OR UPDATE", "controller", "", "", ""),
    ("outbox", "UPDATE", "controller", "", "", ""),
    ("outbox", "INSERT", "promoter", "payload", "", ""),
    ("aliases", "INSERT OR UPDATE", "promoter", "task", "", ""),
    ("promotions", "INSERT", "promoter", "task", "actor", "promoted_at"),
    ("approvals", "INSERT", "promoter", "version_id", "actor", "approved_at"),
    ("version_descriptions", "INSERT OR UPDATE", "trainer", "version_id", "", ""),
    ("description_changes", "INSERT", "trainer", "version_id", "actor", "changed_at"),
)
FUNCTIONS = (
    "tutti_check_move()",
    "tutti_guard_job_part()",
    "tutti_guard_job()",
    "tutti_guard()",
    "tutti_require(text, text, text)",
    "tutti_rank(text)",
    "tutti_rank_of(text)",
)


def upgrade() -> None:
    op.create_table(
        "access",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("task_pattern", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "task_pattern", name=op.f("pk_access")),
    )
    if op.get_bind().dialect.name == "postgresql":
        _create_functions()
        _create_triggers()


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for function in FUNCTIONS:
            op.execute(f"DROP FUNCTION {function} CASCADE")
    op.drop_table("access")


def _create_triggers() -> None:
    for table, verbs, *rule in RULES:
        name = f"{table}_guard_{verbs.split()[0].lower()}"
        args = ", ".join(f"'{arg}'" for arg in rule)
        _execute(
            f"CREATE TRIGGER {name} BEFORE {verbs} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION tutti_guard({args})"
        )
    _execute(
        "CREATE TRIGGER jobs_guard BEFORE INSERT OR UPDATE OR DELETE ON jobs "
        "FOR EACH ROW EXECUTE FUNCTION tutti_guard_job()"
    )
    for table in ("attempts", "job_log", "job_dependencies"):
        _execute(
            f"CREATE TRIGGER {table}_guard BEFORE INSERT OR UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION tutti_guard_job_part()"
        )
    # Judged when the transaction ends: the alias and its audit row come one after the other.
    for table, verbs in {"aliases": "INSERT OR UPDATE", "promotions": "INSERT"}.items():
        _execute(
            f"CREATE CONSTRAINT TRIGGER {table}_check_move AFTER {verbs} ON {table} "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tutti_check_move()"
        )


def _create_functions() -> None:
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    # A fixed search path, the session's own temporary tables last: nothing can be put in the way.
    as_owner = f"SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp"
    for text in (RANK_OF, RANK, REQUIRE, GUARD, GUARD_JOB, GUARD_JOB_PART, CHECK_MOVE):
        _execute(text.replace("AS_OWNER", as_owner))


def _execute(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql.replace("%", "%%"))  # a lone % begins a parameter


RANK_OF = """
CREATE FUNCTION tutti_rank_of(role text) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(
        pg_catalog.array_position(
            ARRAY['viewer', 'trainer', 'promoter', 'controller', 'admin'], role), 0)
$$
"""

# The owner, whoever may become the owner, and superusers stand above all roles.
RANK = r"""
CREATE FUNCTION tutti_rank(of_task text) RETURNS integer LANGUAGE plpgsql STABLE AS_OWNER AS $$
BEGIN
    IF pg_has_role(session_user, current_user, 'MEMBER') THEN
        RETURN 100;
    END IF;
    RETURN coalesce((
        SELECT max(tutti_rank_of(role)) FROM access WHERE principal = session_user AND (
            task_pattern = '*' OR of_task LIKE replace(replace(replace(replace(
                task_pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'))), 0);
END $$
"""

REQUIRE = """
CREATE FUNCTION tutti_require(needed text, of_task text, doing text) RETURNS void
LANGUAGE plpgsql STABLE AS_OWNER AS $$
DECLARE
    found integer := tutti_rank(of_task);
    admins text;
BEGIN
    IF found >= tutti_rank_of(needed) THEN
        RETURN;
    END IF;
    SELECT string_agg(principal, ', ' ORDER BY principal) INTO admins FROM access
        WHERE role = 'admin' AND task_pattern = '*';
    RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
        MESSAGE = format('%s may not %s: that needs the role %s on %s, and %s is %s there',
            session_user, doing, needed, coalesce(of_task, 'all tasks'), session_user,
            coalesce((ARRAY['viewer', 'trainer', 'promoter', 'controller'])[found], 'nothing')),
        HINT = format('Ask %s, the owner of the database%s, for `tutti access add %s --role %s '
            '--tasks %L`.', current_user, coalesce(', or ' || admins, ''), session_user, needed,
            coalesce(of_task, '*'));
END $$
"""

GUARD = """
CREATE FUNCTION tutti_guard() RETURNS trigger LANGUAGE plpgsql AS_OWNER AS $$
DECLARE
    needed CONSTANT text := TG_ARGV[0];
    found jsonb;
    of_task text;
    doing CONSTANT text := lower(TG_OP) || ' rows of ' || TG_TABLE_NAME;
BEGIN
    IF tutti_rank(NULL) >= 100 THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    FOREACH found IN ARRAY ARRAY[to_jsonb(OLD), to_jsonb(NEW)] LOOP
        CONTINUE WHEN found IS NULL;
        of_task := CASE TG_ARGV[1]
            WHEN '' THEN NULL
            WHEN 'payload' THEN found -> 'payload' ->> 'task'
            WHEN 'version_id' THEN (
                SELECT task FROM prompt_versions WHERE id = (found ->> 'version_id')::bigint)
            ELSE found ->> TG_ARGV[1] END;
        PERFORM tutti_require(needed, of_task, doing);
        IF found ->> 'overrode' IS NOT NULL THEN
            PERFORM tutti_require('admin', of_task, 'override the gate of a promotion (--force)');
        END IF;
        IF TG_ARGV[2] <> '' AND found ->> TG_ARGV[2] NOT IN (
            session_user, 'mlflow, adopted by ' || session_user) THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format(
                '%s may not %s in the name of %s', session_user, doing, found ->> TG_ARGV[2]);
        END IF;
        IF TG_ARGV[3] <> '' AND (found ->> TG_ARGV[3])::timestamptz
            NOT BETWEEN transaction_timestamp() AND clock_timestamp() THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format(
                '%s may not %s at a time that is not now', session_user, doing);
        END IF;
    END LOOP;
    RETURN coalesce(NEW, OLD);
END $$
"""

# Own jobs only, and of them only what a submitter decides: what an attempt did, gave or holds is
# the controller's to say.
GUARD_JOB = """
CREATE FUNCTION tutti_guard_job() RETURNS trigger LANGUAGE plpgsql AS_OWNER AS $$
DECLARE
    free CONSTANT jsonb := '{"lease_holder": null, "lease_token": null, "lease_expires_at": null,
        "gang": null}';
    fresh CONSTANT jsonb := '{"version": null, "outcome": null, "checkpoint": null, "log": null,
        "error": null, "started_at": null, "progress": {}, "faults": 0}';
    old_row jsonb;
    new_row jsonb;
    fixed text;
    is_allowed boolean;
BEGIN
    IF tutti_rank(coalesce(NEW.task, OLD.task)) >= tutti_rank_of('controller')
        AND tutti_rank(coalesce(OLD.task, NEW.task)) >= tutti_rank_of('controller') THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    IF TG_OP = 'DELETE' THEN
        PERFORM tutti_require('controller', NULL, 'delete jobs');
    END IF;
    old_row := to_jsonb(OLD);  -- not for a controller: text of its JSON may hold a zero byte
    new_row := to_jsonb(NEW);
    PERFORM tutti_require('trainer', NEW.task, 'submit or change jobs of ' || NEW.task);
    IF TG_OP = 'UPDATE' THEN
        PERFORM tutti_require('trainer', OLD.task, 'submit or change jobs of ' || OLD.task);
    END IF;
    IF NEW.owner <> session_user OR OLD.owner <> session_user THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format(
            '%s may not submit or change a job of %s', session_user,
            CASE WHEN OLD.owner <> session_user THEN OLD.owner ELSE NEW.owner END),
            HINT = 'Only its owner and a controller may; `--force` submits the same as a new job.';
    END IF;
    IF TG_OP = 'INSERT' THEN
        is_allowed := new_row @> (free || fresh || '{"state": "queued", "epoch": 0, "attempts": 0,
            "is_pause_asked": false, "finished_at": null}');
    ELSE
        is_allowed := (NEW.id, NEW.idempotency_key, NEW.created_at, NEW.attempts)
            = (OLD.id, OLD.idempotency_key, OLD.created_at, OLD.attempts);
        FOR fixed IN SELECT jsonb_object_keys(fresh) LOOP
            is_allowed := is_allowed
                AND (new_row -> fixed = old_row -> fixed OR new_row -> fixed = fresh -> fixed);
        END LOOP;
        IF NEW.state = OLD.state THEN
            is_allowed := is_allowed AND NEW.epoch = OLD.epoch
                AND new_row @> (SELECT jsonb_object_agg(key, old_row -> key)
                    FROM jsonb_object_keys(free) AS keys (key))
                AND new_row -> 'submission' = old_row -> 'submission' AND NEW.task = OLD.task;
        ELSE
            is_allowed := is_allowed AND NEW.epoch = OLD.epoch + 1 AND new_row @> free
                AND (OLD.state, NEW.state) IN (
                    ('queued', 'paused'), ('queued', 'cancelled'), ('paused', 'queued'),
                    ('paused', 'cancelled'), ('admitted', 'cancelled'), ('running', 'cancelled'),
                    ('failed', 'queued'), ('cancelled', 'queued'));
        END IF;
    END IF;
    IF NOT coalesce(is_allowed, false) THEN
        PERFORM tutti_require('controller', NULL, 'say what an attempt of a job did or holds');
    END IF;
    RETURN NEW;
END $$
"""

GUARD_JOB_PART = """
CREATE FUNCTION tutti_guard_job_part() RETURNS trigger LANGUAGE plpgsql AS_OWNER AS $$
DECLARE
    job record;
    doing CONSTANT text := lower(TG_OP) || ' rows of ' || TG_TABLE_NAME;
BEGIN
    SELECT task, owner INTO job FROM jobs WHERE id = coalesce(OLD.job_id, NEW.job_id);
    IF tutti_rank(job.task) >= tutti_rank_of('controller') THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    PERFORM tutti_require('trainer', job.task, doing || ' of ' || coalesce(job.task, 'no job'));
    IF job.owner IS DISTINCT FROM session_user::text THEN
        PERFORM tutti_require('controller', NULL, doing || ' of a job of ' || job.owner);
    END IF;
    IF (TG_TABLE_NAME, TG_OP) IN (
        ('job_log', 'INSERT'), ('job_dependencies', 'INSERT'), ('job_dependencies', 'DELETE')) THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    IF (TG_TABLE_NAME, TG_OP) = ('attempts', 'UPDATE') THEN
        IF to_jsonb(NEW) - '{outcome,cause,finished_at}'::text[]
            = to_jsonb(OLD) - '{outcome,cause,finished_at}'::text[]
            AND OLD.outcome IS NULL AND NEW.outcome = 'cancelled' THEN
            RETURN NEW;
        END IF;
    END IF;
    PERFORM tutti_require('controller', NULL, doing);
    RETURN coalesce(NEW, OLD);
END $$
"""

# An alias moves with its row of the audit, and the audit has no row without its move.
CHECK_MOVE = """
CREATE FUNCTION tutti_check_move() RETURNS trigger LANGUAGE plpgsql AS_OWNER AS $$
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
