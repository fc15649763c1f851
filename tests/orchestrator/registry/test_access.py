"""On a real PostgreSQL, everybody at an SQL prompt: what no role allows, the database refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from orchestrator.domain.access import ALL_TASKS, Access, Role
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.gate import Gate
from orchestrator.domain.job import JobState, Submission
from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.domain.task_spec import PromoteSpec
from orchestrator.registry import migrate
from orchestrator.registry.access_book import AccessBook
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.database import Database
from orchestrator.registry.errors import AccessDenied
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.leadership import Leadership
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from tests.orchestrator.registry.batch_plans import answer, make_plan

PEOPLE = (
    Access("vic", Role.VIEWER, ALL_TASKS),
    Access("tina", Role.TRAINER, "color-*"),
    Access("tom", Role.TRAINER, ALL_TASKS),
    Access("paula", Role.PROMOTER, "color-*"),
    Access("ctl", Role.CONTROLLER, ALL_TASKS),
    Access("lead", Role.ADMIN, "color-*"),
    Access("ada", Role.ADMIN, ALL_TASKS),
)
As = Callable[[str], Database]
MakeUrl = Callable[[], str]
pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def owner_url(new_postgres_url: MakeUrl) -> str:
    url = new_postgres_url()
    migrate.upgrade(url)
    return url


@pytest.fixture(scope="module")
def book(owner_url: str) -> Iterator[AccessBook]:
    database = Database(owner_url)
    yield AccessBook(database, owner_url)
    database.close()


@pytest.fixture(scope="module")
def urls(book: AccessBook) -> Iterator[dict[str, str]]:
    """The URL of each login, as `add` printed it."""
    yield {each.principal: str(book.add(each)) for each in PEOPLE}
    for name in {each.principal for each in book.list()}:
        book.remove(name)


@pytest.fixture(scope="module")
def as_(urls: dict[str, str], owner_url: str) -> Iterator[As]:
    opened = {name: Database.open(url) for name, url in urls.items()}
    opened["owner"] = Database.open(owner_url)
    yield opened.__getitem__
    for database in opened.values():
        database.close()


@pytest.fixture(scope="module", autouse=True)
def registry_with_rows(
    as_: As, trained: Callable[..., TrainedPrompt], submission: Callable[..., Submission]
) -> None:
    """Two versions of two tasks with production at the first, and a job each of tina and tom."""
    registry = PromptRegistry(as_("owner"))
    for task in ("color-a", "shape_a"):
        for content in (1, 2):
            registry.register(trained(task, content))
        registry.promote(PromptRef(task, 1), "production", "postgres")
    for name, task in {"tina": "color-a", "tom": "shape_a"}.items():
        JobQueue(as_(name)).submit(submission(task, "own"), name)


def run(database: Database, sql: str) -> int:
    """One transaction at the SQL prompt."""
    with database.write() as connection:
        return connection.exec_driver_sql(sql).rowcount


PROMOTION = (
    "INSERT INTO promotions (task, alias, generation, from_version, to_version, actor, reason, "
    "promoted_at{extra}) VALUES ('{task}', 'production', 2, {move}, '{actor}', '', "
    "{at}{value})"
)


def promotion(
    actor: str,
    task: str = "color-a",
    at: str = "clock_timestamp()",
    overrode: str | None = None,
    move: str = "1, 2",
) -> str:
    extra, value = (", overrode", f", '{overrode}'") if overrode else ("", "")
    return PROMOTION.format(task=task, actor=actor, at=at, extra=extra, value=value, move=move)


def removal(actor: str, task: str = "color-a", move: str = "1, NULL") -> str:
    return f"{promotion(actor, task, move=move)}; {REMOVE.format(task)}"


MOVE = "UPDATE aliases SET version_id = (SELECT max(id) FROM prompt_versions WHERE task = '{0}'), "
MOVE += "generation = 2 WHERE task = '{0}'"
REMOVE = "DELETE FROM aliases WHERE task = '{0}' AND alias = 'production'"
REFUSED = [
    # Moving production, and what the audit says of it.
    ("tina", MOVE.format("color-a")),
    ("tina", promotion("tina")),
    ("tom", MOVE.format("shape_a")),
    ("paula", MOVE.format("shape_a")),
    ("paula", promotion("paula", "shape_a")),
    ("paula", MOVE.format("color-a")),  # without its row of the audit
    ("paula", promotion("paula")),  # without the move
    ("paula", promotion("tina") + "; " + MOVE.format("color-a")),
    ("paula", promotion("paula", at="now() - interval '1 day'") + "; " + MOVE.format("color-a")),
    ("paula", promotion("paula", overrode="its gate") + "; " + MOVE.format("color-a")),
    ("paula", "UPDATE aliases SET alias = 'hidden' WHERE task = 'color-a'"),
    ("paula", "UPDATE promotions SET actor = 'tina'"),
    ("paula", "DELETE FROM aliases"),
    # Taking it away.
    ("tina", REMOVE.format("color-a")),
    ("tina", removal("tina")),
    ("tom", removal("tom", "shape_a")),
    ("paula", removal("paula", "shape_a")),
    ("paula", removal("tina")),
    ("paula", removal("paula", move="NULL, NULL")),
    ("paula", removal("paula", move="1, 2")),
    ("paula", promotion("paula", move="1, NULL")),  # without the removal
    ("paula", promotion("paula", move="1, NULL") + "; " + MOVE.format("color-a")),
    (
        "paula",
        """INSERT INTO approvals (version_id, actor, is_given, note, approved_at)
        SELECT id, 'tom', true, '', clock_timestamp() FROM prompt_versions
        WHERE task = 'color-a'""",
    ),
    # Versions and their evidence.
    ("tina", "UPDATE prompt_versions SET metrics = '{}'"),
    ("paula", "UPDATE prompt_versions SET metrics = '{}'"),
    ("ada", "UPDATE prompt_versions SET metrics = '{}'"),
    ("ada", "DELETE FROM prompt_versions"),
    ("tina", "INSERT INTO version_metrics SELECT 'more', id, 1 FROM prompt_versions"),
    ("tina", "UPDATE tasks SET last_version = 0"),
    ("tina", "INSERT INTO tasks VALUES ('color-z', 0)"),
    # Jobs of others; what only a controller says of one's own.
    ("tina", "UPDATE jobs SET priority = 9 WHERE owner = 'tom'"),
    ("tom", "UPDATE jobs SET owner = 'tom' WHERE owner = 'tina'"),
    ("tom", "UPDATE jobs SET owner = 'tina' WHERE owner = 'tom'"),
    ("tom", "UPDATE jobs SET state = 'succeeded', epoch = epoch + 1 WHERE owner = 'tom'"),
    ("tom", "UPDATE jobs SET lease_token = 'x', lease_holder = 'x' WHERE owner = 'tom'"),
    ("tom", "UPDATE jobs SET version = 1, outcome = '{}' WHERE owner = 'tom'"),
    ("tom", "UPDATE jobs SET epoch = 7 WHERE owner = 'tom'"),
    ("tina", "UPDATE jobs SET task = 'shape_a' WHERE owner = 'tina'"),
    ("tina", "INSERT INTO job_log (job_id, at, text) SELECT id, now(), 'x' FROM jobs"),
    ("tom", "DELETE FROM job_log"),
    ("tom", "DELETE FROM jobs"),
    (
        "tom",
        """INSERT INTO attempts (job_id, number, epoch, holder, started_at)
        SELECT id, 1, 1, 'x', now() FROM jobs WHERE owner = 'tom'""",
    ),
    # Roles, quotas, base models, MLflow, leadership.
    ("tina", "INSERT INTO access VALUES ('tina', '*', 'admin')"),
    ("paula", "UPDATE access SET role = 'admin'"),
    ("ctl", "INSERT INTO access VALUES ('ctl', 'x', 'admin')"),
    ("lead", "INSERT INTO access VALUES ('lead', '*', 'admin')"),
    ("tina", "DELETE FROM access"),
    ("tina", "INSERT INTO quotas VALUES ('tina', 9, 9)"),
    ("ctl", "INSERT INTO quotas VALUES ('ctl', 9, 9)"),
    ("paula", "UPDATE outbox SET delivered_at = now()"),
    ("paula", "INSERT INTO leadership VALUES ('controller', 'x', 9, now())"),
    ("tom", "INSERT INTO mlflow_links SELECT id, 'x' FROM prompt_versions"),
    # Becoming somebody else; what guards the tables.
    ("tina", "SET ROLE postgres"),
    ("tina", "SET SESSION AUTHORIZATION postgres"),
    ("tina", "SET SESSION AUTHORIZATION ada"),
    ("ada", "SET session_replication_role = replica"),
    ("ada", "ALTER TABLE aliases DISABLE TRIGGER ALL"),
    ("ada", "DROP TRIGGER promotions_refuse_change ON promotions"),
    ("ada", "DROP FUNCTION tutti_guard() CASCADE"),
    ("ada", "TRUNCATE job_log"),
    ("ada", "DROP TABLE promotions"),
    ("tina", "CREATE TABLE own (x integer)"),
    ("tina", "ALTER ROLE tina CREATEROLE"),
]
WRITES = [
    *(sql for _, sql in REFUSED if sql.split()[0] in ("INSERT", "UPDATE", "DELETE")),
    "INSERT INTO version_descriptions SELECT id, '', '{}' FROM prompt_versions",
]


@pytest.mark.parametrize(("name", "sql"), REFUSED)
def test_database_refuses_what_the_role_does_not_allow(as_: As, name: str, sql: str) -> None:
    with pytest.raises(AccessDenied):
        run(as_(name), sql)


@pytest.mark.parametrize("sql", sorted(set(WRITES)))
def test_viewer_writes_nothing(as_: As, sql: str) -> None:
    with pytest.raises(AccessDenied):
        run(as_("vic"), sql)


def test_viewer_reads_everything(as_: As) -> None:
    assert len(PromptRegistry(as_("vic")).list()) == 4
    assert len(JobQueue(as_("vic")).list()) == 2


def test_refusal_says_who_needs_which_role_on_what_and_whom_to_ask(as_: As) -> None:
    with pytest.raises(AccessDenied, match="tina .* needs the role promoter on color-a") as refused:
        PromptRegistry(as_("tina")).promote(PromptRef("color-a", 2), "production", "tina")
    assert "Ask postgres" in refused.value.remedy
    assert "ada" in refused.value.remedy
    assert refused.value.exit_code == 4


def test_promoter_promotes_approves_and_rolls_back_tasks_of_the_pattern(as_: As) -> None:
    registry = PromptRegistry(as_("paula"))
    assert registry.promote(PromptRef("color-a", 2), "staging", "paula").actor == "paula"
    registry.promote(PromptRef("color-a", 1), "staging", "paula")
    assert registry.rollback("color-a", "staging", "paula").to_version == 2
    assert [each.actor for each in registry.approve(PromptRef("color-a", 2), "paula")] == ["paula"]
    registry.describe(PromptRef("color-a", 2), "paula", "better")
    # A move back to an older row of the audit is a move without one of its own.
    with pytest.raises(AccessDenied, match="without the row of promotions"):
        run(
            as_("paula"),
            "UPDATE aliases SET generation = 2, version_id = (SELECT min(id) FROM "
            "prompt_versions WHERE task = 'color-a') WHERE alias = 'staging'",
        )
    for call in (registry.promote, registry.approve):
        with pytest.raises(AccessDenied, match="on shape_a"):
            call(
                PromptRef("shape_a", 2), "staging" if call == registry.promote else "paula", "paula"
            )


def test_promoter_takes_an_alias_away_and_a_trainer_does_not(as_: As) -> None:
    registry, ref = PromptRegistry(as_("paula")), PromptRef("color-a", 1)
    registry.promote(ref, "retired", "paula")
    with pytest.raises(AccessDenied, match="tina .* needs the role promoter on color-a"):
        PromptRegistry(as_("tina")).unset("color-a", "retired", "tina")
    assert registry.unset("color-a", "retired", "paula").to_version is None
    assert registry.rollback("color-a", "retired", "paula").to_version == 1
    registry.unset("color-a", "retired", "paula")
    # An alias that is back at an older generation is a move without a row of its own.
    with pytest.raises(AccessDenied, match="without the row of promotions"):
        run(
            as_("paula"),
            "INSERT INTO aliases SELECT task, 'retired', id, 1, now() FROM prompt_versions "
            "WHERE task = 'color-a' AND number = 1",
        )
    assert registry.promote(ref, "retired", "paula").generation == 5


def test_group_that_was_made_before_may_take_aliases_away(new_postgres_url: MakeUrl) -> None:
    url = new_postgres_url()
    migrate.upgrade(url)
    migrate.downgrade(url, "0008")
    database = Database(url)
    group = "SELECT 'tutti_' || oid FROM pg_database WHERE datname = current_database()"
    with database.write() as connection:
        name = connection.execute(text(group)).scalar_one()
        connection.execute(text(f"CREATE ROLE {name} NOLOGIN"))
    may = text("SELECT has_table_privilege(:name, 'aliases', 'DELETE')")
    for change, expected in (
        (lambda: migrate.upgrade(url), True),
        (lambda: migrate.downgrade(url, "0008"), False),
    ):
        change()
        with database.read() as connection:
            assert connection.execute(may, {"name": name}).scalar_one() is expected
    database.close()


def test_only_an_admin_overrides_a_gate(as_: As) -> None:
    gate, ref = Gate.parse("accuracy > 0.9"), PromptRef("color-a", 2)
    with pytest.raises(AccessDenied, match="--force.* needs the role admin on color-a"):
        PromptRegistry(as_("paula")).promote(ref, "canary", "paula", gate=gate, force=True)
    move = PromptRegistry(as_("lead")).promote(ref, "canary", "lead", gate=gate, force=True)
    assert move.overrode is not None
    with pytest.raises(AccessDenied, match="on shape_a"):
        PromptRegistry(as_("lead")).promote(PromptRef("shape_a", 2), "canary", "lead")


def test_trainer_controls_own_jobs_and_a_controller_runs_them(
    as_: As, submission: Callable[..., Submission], trained: Callable[..., TrainedPrompt]
) -> None:
    own, controller = JobQueue(as_("tina")), JobQueue(as_("ctl"))
    job, _ = own.submit(submission("color-b"), "tina")
    own.pause(job.id, "tina")
    own.resume(job.id, "tina")
    own.set_priority(job.id, 5, "tina")
    controller.claim([job.id], "host", 60, "gang")
    assert own.pause(job.id, "tina").is_pause_asked
    assert own.cancel(job.id, "tina").state == JobState.CANCELLED
    assert own.retry(job.id, "tina").state == JobState.QUEUED
    own.cancel(job.id, "tina")
    assert own.submit(submission("color-b"), "tina")[1]
    with pytest.raises(AccessDenied, match="job of tina"):
        JobQueue(as_("tom")).cancel(job.id, "tom")
    with pytest.raises(AccessDenied, match="needs the role trainer on shape_b"):
        own.submit(submission("shape_b"), "tina")
    with pytest.raises(AccessDenied, match="say what an attempt"):
        own.claim([job.id], "host", 60)

    assert Leadership(as_("ctl")).lead("host", 60, lambda _: False) == 1
    _, lease = controller.claim([job.id], "host", 60, "gang")[job.id]
    controller.start(lease)
    controller.heartbeat([lease], 60, {job.id: {"step": 1}})
    controller.checkpoint(lease, "digest")
    done = PromptRegistry(as_("ctl")).complete(
        lease, trained("color-b", 9), PromoteSpec(alias="production"), "ctl"
    )
    assert done.promotion is not None
    assert done.promotion.actor == "ctl"
    assert own.get(job.id).state == JobState.SUCCEEDED
    controller.archive(job.id, "digest")
    for item in Outbox(as_("ctl")).pending():
        Outbox(as_("ctl")).delivered(item.id)


def test_trainer_runs_own_batches_and_a_viewer_none(as_: As) -> None:
    """A trainer of a pattern too: a run writes to no task."""
    own, run_id = BatchBook(as_("tina")), "7" * 32
    lease = own.create(run_id, make_plan((2,)), "in", "tina", "host:1:1", 60)
    own.commit(lease, [answer(claim, 2) for claim in own.claim(lease)])
    for name, why in {"vic": "needs the role trainer", "tom": "of tina"}.items():
        with pytest.raises(AccessDenied, match=why):
            BatchBook(as_(name)).cancel(run_id)
        assert BatchBook(as_(name)).get(run_id).num_answered == 2
        with pytest.raises(AccessDenied):
            run(as_(name), "UPDATE batch_shards SET sha256 = 'x'")
    with pytest.raises(AccessDenied, match="needs the role trainer"):
        BatchBook(as_("vic")).create("8" * 32, make_plan(output="/v"), "in", "vic", "h", 60)
    with pytest.raises(AccessDenied, match="of tom"):
        BatchBook(as_("tina")).create("8" * 32, make_plan(output="/v"), "in", "tom", "h", 60)
    with pytest.raises(AccessDenied, match="what a batch run was started with"):
        run(as_("tina"), "UPDATE batch_runs SET pins = '{}'")
    for sql in ("DELETE FROM batch_shards", "DELETE FROM batch_runs"):
        with pytest.raises(AccessDenied):
            run(as_("ada"), sql)
    own.finish(lease, 1.0)
    other = BatchBook(as_("tom")).create("9" * 32, make_plan(output="/t"), "in", "tom", "h", 60)
    assert other.epoch == 1
    assert BatchBook(as_("ctl")).cancel("9" * 32).state == "cancelled"


def test_token_is_kept_as_a_verifier_and_rotates(
    as_: As, book: AccessBook, urls: dict[str, str]
) -> None:
    def kept() -> str:
        with as_("owner").read() as connection:
            query = "SELECT rolpassword FROM pg_authid WHERE rolname = 'vic'"
            return str(connection.execute(text(query)).scalar_one())

    first, token = kept(), make_url(urls["vic"]).password
    assert first.startswith("SCRAM-SHA-256$")
    assert token is not None
    assert len(token) >= 43
    assert token not in first
    new = make_url(book.rotate("vic"))
    assert new.username == "vic"
    assert new.password != token
    assert kept() != first


def test_admin_gives_roles_to_who_has_a_login_and_the_owner_makes_logins(
    as_: As, urls: dict[str, str], book: AccessBook
) -> None:
    by_admin = AccessBook(as_("ada"), urls["ada"])
    assert by_admin.add(Access("vic", Role.PROMOTER, "shape-*")) is None
    assert Access("vic", Role.PROMOTER, "shape-*") in book.list()
    by_admin.remove("vic", "shape-*")
    with pytest.raises(AccessDenied, match="logins could not be changed") as refused:
        by_admin.add(Access("new", Role.VIEWER, ALL_TASKS))
    assert "CREATEROLE" in refused.value.remedy
    assert "new" not in {each.principal for each in book.list()}


def test_standing_says_who_one_is(as_: As, urls: dict[str, str], book: AccessBook) -> None:
    assert (book.standing().user, book.standing().is_owner) == ("postgres", True)
    tina = AccessBook(as_("tina"), urls["tina"]).standing()
    assert (tina.user, tina.is_owner, tina.accesses) == ("tina", False, (PEOPLE[1],))


def test_removed_principal_cannot_log_in_and_databases_of_one_server_are_apart(
    book: AccessBook, new_postgres_url: MakeUrl
) -> None:
    other_url = new_postgres_url()
    migrate.upgrade(other_url)
    other_database = Database(other_url)
    other = AccessBook(other_database, other_url)
    url = make_url(str(book.add(Access("eve", Role.ADMIN, ALL_TASKS))))
    url = url.set(drivername="postgresql+psycopg")
    elsewhere = create_engine(url.set(database=make_url(other_url).database))
    with pytest.raises(ProgrammingError, match="permission denied"), elsewhere.begin() as prompt:
        prompt.execute(text("SELECT * FROM jobs"))
    assert other.add(Access("eve", Role.VIEWER, ALL_TASKS)) is None  # one login, two databases
    book.remove("eve")
    with elsewhere.begin() as prompt:
        prompt.execute(text("SELECT * FROM jobs"))
    other.remove("eve")
    elsewhere.dispose()
    with pytest.raises(OperationalError, match='role "eve" does not exist'):
        create_engine(url).connect()
    other_database.close()


def test_owner_needs_no_superuser_and_a_removed_principal_loses_its_open_connection(
    new_postgres_url: MakeUrl,
) -> None:
    url = make_url(new_postgres_url())
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as prompt:
        prompt.execute(text("CREATE ROLE plain_owner LOGIN CREATEROLE"))
        prompt.execute(text(f"ALTER DATABASE {url.database} OWNER TO plain_owner"))
    server.dispose()
    owner_url = url.set(username="plain_owner").render_as_string(hide_password=False)
    migrate.upgrade(owner_url)
    database = Database(owner_url)
    book = AccessBook(database, owner_url)
    fay_url = make_url(str(book.add(Access("fay", Role.ADMIN, ALL_TASKS))))
    book.rotate("fay")
    fay = create_engine(fay_url.set(drivername="postgresql+psycopg"))
    with fay.connect() as prompt:
        prompt.execute(text("SELECT * FROM jobs"))
        prompt.commit()
        book.remove("fay")
        with pytest.raises(ProgrammingError, match="permission denied"):
            prompt.execute(text("SELECT * FROM jobs"))
    fay.dispose()
    database.close()


def test_names_and_patterns_are_checked(book: AccessBook) -> None:
    for wrong in (
        Access('a"; DROP TABLE jobs', Role.VIEWER, ALL_TASKS),
        Access("pg_read_all_data", Role.VIEWER, ALL_TASKS),
        Access("ann", Role.TRAINER, "a'b"),
        Access("ann", Role.TRAINER, ""),
        Access("ann", Role.CONTROLLER, "color-*"),
    ):
        with pytest.raises(InvalidInput):
            book.add(wrong)


def test_underscore_of_a_pattern_matches_itself_alone(as_: As, book: AccessBook) -> None:
    book.add(Access("tina", Role.PROMOTER, "shape_b*"))
    with as_("tina").read() as connection:
        query = text("SELECT tutti_rank(:task)")
        ranks = [
            connection.execute(query, {"task": task}).scalar_one()
            for task in ("shape_b1", "shape-b1", "shape_a", "color-x")
        ]
    book.remove("tina", "shape_b*")
    assert ranks == [3, 0, 0, 2]


def test_sqlite_says_that_it_has_no_access_control(sqlite_template: Path) -> None:
    url = f"sqlite:///{sqlite_template}"
    book = AccessBook(Database(url), url)
    with pytest.raises(InvalidInput, match="no access control"):
        book.add(Access("ann", Role.VIEWER, ALL_TASKS))
    assert (book.list(), book.standing().user) == ([], None)
