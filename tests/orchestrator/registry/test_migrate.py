"""The migrations make exactly the declared tables, up and down, alone and in a crowd."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError as SqlIntegrityError

from orchestrator.domain.errors import InvalidInput, SchemaMismatch
from orchestrator.domain.job import JobOptions, Submission
from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.domain.sweep import SweepSpec
from orchestrator.domain.task_spec import ShardingSpec, TrainingSpec
from orchestrator.registry import migrate
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.tables import REVISION, VERSION_TABLE, jobs, metadata

SPAWN = multiprocessing.get_context("spawn")


def test_migrated_schema_is_the_declared_one(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
        names = [check["name"] for check in inspect(connection).get_check_constraints("jobs")]
    assert names == ["ck_jobs_known_state"]


def test_the_newest_migration_is_the_declared_one() -> None:
    assert migrate._scripts().get_current_head() == migrate.head() == REVISION


def test_check_constraint_allows_each_job_state_and_no_other(database: Database) -> None:
    (constraint,) = (c for c in jobs.constraints if c.name == "ck_jobs_known_state")
    with database.read() as connection:
        (found,) = inspect(connection).get_check_constraints("jobs")
    assert words(found["sqltext"]) == words(str(constraint.sqltext))  # type: ignore[attr-defined]


def words(sql: str) -> set[str]:
    return set(sql.split("'")[1::2])


def test_schema_goes_down_and_up_again(empty_url: str) -> None:
    assert migrate.current(empty_url) is None
    for _ in range(2):
        assert migrate.upgrade(empty_url) == migrate.head() == migrate.current(empty_url)
        assert migrate.upgrade(empty_url) == migrate.head()
        migrate.downgrade(empty_url, "base")
        assert migrate.current(empty_url) is None
        with Database(empty_url).read() as connection:
            assert set(inspect(connection).get_table_names()) == {VERSION_TABLE}


@pytest.fixture
def older_url(empty_url: str, submission: Callable[..., Submission]) -> str:
    """A database of schema 0002, with three jobs, one of them running."""
    migrate.upgrade(empty_url)
    queue = JobQueue(Database(empty_url))
    plain, sharded, swept = (submission(nonce=nonce) for nonce in "abc")
    parts = {"sharding": ShardingSpec(zero_stage=3, data_parallel=True)}
    sharded = replace(sharded, spec=sharded.spec.model_copy(update=parts))
    sweep = SweepSpec(over={"training.steps": (7, 90, 30), "training.seed": (1, 2)})
    swept = replace(swept, spec=swept.spec.model_copy(update={"sweep": sweep}))
    for given in (plain, sharded, swept):
        job, _ = queue.submit(given, "ann")
    queue.claim([job.id], "controller", 3600)
    migrate.downgrade(empty_url, "0002")
    assert migrate.current(empty_url) == "0002"
    return empty_url


def owners(url: str, column: str) -> list[str]:
    with Database(url).read() as connection:
        return list(connection.execute(text(f"SELECT {column} FROM jobs")).scalars())


def test_jobs_of_the_older_schema_are_kept_and_can_be_planned(older_url: str) -> None:
    assert owners(older_url, "actor") == ["ann"] * 3
    migrate.upgrade(older_url)
    queue = JobQueue(Database.open(older_url))
    planned = [*queue.ready(), *queue.held()]
    steps = TrainingSpec().steps
    assert [(job.owner, job.zero_stage, job.is_data_parallel) for job in planned] == [
        ("ann", None, False),
        ("ann", 3, True),
        ("ann", None, False),
    ]
    assert [(job.num_positions, job.num_steps) for job in planned] == [
        (96.5, steps),
        (96.5, steps),
        (96.5, 90),
    ]
    found = [queue.get(job.id) for job in planned]
    assert [job.options for job in found] == [JobOptions()] * 3
    assert [(a.holder, a.fault) for a in queue.attempts(planned[2].id)] == [("controller", None)]
    assert len(queue.reclaim(lambda holder: True)) == 1


def test_promotions_of_the_older_schema_are_kept_and_can_be_rolled_back(
    empty_url: str, trained: Callable[..., TrainedPrompt]
) -> None:
    migrate.upgrade(empty_url)
    registry = PromptRegistry(Database(empty_url))
    for number in (1, 2):
        registry.register(trained(content=number))
        registry.promote(PromptRef("color", number), "production", "ann", "why")
    before = registry.list("color"), registry.history("color")
    migrate.downgrade(empty_url, "0003")
    migrate.upgrade(empty_url)
    registry = PromptRegistry(Database.open(empty_url))
    assert (registry.list("color"), registry.history("color")) == before
    assert registry.rollback("color", "production", "ann").to_version == 1
    assert registry.describe(PromptRef("color", 1), "ann", "old", {"a": "b"}).tags == {"a": "b"}


def test_history_is_guarded_after_going_down_and_up(
    empty_url: str, trained: Callable[..., TrainedPrompt]
) -> None:
    migrate.upgrade(empty_url)
    before = triggers(empty_url)
    migrate.downgrade(empty_url, "0008")
    migrate.upgrade(empty_url)
    assert triggers(empty_url) == before
    registry = PromptRegistry(Database.open(empty_url))
    registry.register(trained())
    registry.promote(PromptRef("color", 1), "production", "ann")
    for verb in ("UPDATE promotions SET actor = 'x'", "DELETE FROM promotions"):
        with pytest.raises(SqlIntegrityError), Database(empty_url).write() as connection:
            connection.execute(text(verb))


def triggers(url: str) -> list[str]:
    with Database(url).read() as connection:
        query = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
        if connection.dialect.name == "sqlite":
            query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        return sorted(connection.execute(text(query)).scalars())


def test_schema_that_cannot_say_what_happened_is_not_gone_down_to(
    empty_url: str, trained: Callable[..., TrainedPrompt]
) -> None:
    migrate.upgrade(empty_url)
    registry = PromptRegistry(Database(empty_url))
    registry.register(trained())
    registry.promote(PromptRef("color", 1), "production", "ann")
    registry.unset("color", "production", "ann")
    before = registry.history("color")
    with pytest.raises(RuntimeError, match="cannot say that an alias was taken away"):
        migrate.downgrade(empty_url, "0008")
    migrate.check(empty_url)
    assert registry.history("color") == before


def test_upgrade_of_an_older_schema_killed_half_way_leaves_it(older_url: str) -> None:
    victim = SPAWN.Process(target=die_half_way, args=(older_url, "create_index", 2))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert migrate.current(older_url) == "0002"
    assert owners(older_url, "actor") == ["ann"] * 3
    assert migrate.upgrade(older_url) == migrate.head()
    assert owners(older_url, "owner") == ["ann"] * 3


def test_database_without_schema_is_refused_with_the_command(empty_url: str) -> None:
    with pytest.raises(SchemaMismatch, match="no Tutti schema\n  Run `tutti db upgrade`"):
        migrate.check(empty_url)


def test_older_schema_is_refused_with_the_command(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, newer = migrate.head(), "9999"
    monkeypatch.setattr(migrate, "head", lambda: newer)
    with pytest.raises(
        SchemaMismatch, match=rf"{found}, older than .* {newer}\n.*`tutti db upgrade`"
    ):
        Database.open(database_url)


def test_newer_schema_is_refused_with_the_remedy(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    with Database(empty_url).write() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0999'"))
    with pytest.raises(SchemaMismatch, match=r"0999 is newer than this program(.|\n)*pip install"):
        Database.open(empty_url)


def test_two_upgrades_at_once_in_threads_both_succeed(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(migrate.upgrade, [empty_url] * 4)) == {migrate.head()}


def test_several_databases_are_upgraded_at_once_in_threads(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / str(number)}.db" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(migrate.upgrade, urls)) == {migrate.head()}
    assert {migrate.current(url) for url in urls} == {migrate.head()}


def test_two_upgrades_at_once_in_processes_both_succeed(empty_url: str) -> None:
    with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        assert set(pool.map(migrate.upgrade, [empty_url] * 2)) == {migrate.head()}
    migrate.check(empty_url)


def test_upgrade_killed_half_way_leaves_nothing_and_can_be_run_again(empty_url: str) -> None:
    victim = SPAWN.Process(target=die_half_way, args=(empty_url,))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert migrate.current(empty_url) is None
    with Database(empty_url).read() as connection:
        assert inspect(connection).get_table_names() == []
    assert migrate.upgrade(empty_url) == migrate.head()
    migrate.check(empty_url)


def die_half_way(url: str, verb: str = "create_table", call: int = 5) -> None:
    """Upgrade, and be killed at a call of one of alembic's operations."""
    from alembic import op

    operation, num_calls = getattr(op, verb), 0

    def operate_and_die(*args: object, **options: object) -> object:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(*args, **options)

    setattr(op, verb, operate_and_die)
    migrate.upgrade(url)


def test_tables_of_another_program_are_refused(empty_url: str) -> None:
    with Database(empty_url).write() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
    with pytest.raises(InvalidInput, match="another program's tables are in the way: jobs"):
        migrate.upgrade(empty_url)


def test_asking_for_the_revision_does_not_create_the_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.db"
    assert migrate.current(f"sqlite:///{path}") is None
    assert not path.exists()


def test_upgrade_waits_for_a_writer_and_then_succeeds(empty_url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        with Database(empty_url).write() as connection:
            connection.execute(text("CREATE TABLE other (id INTEGER)"))
            upgraded = pool.submit(migrate.upgrade, empty_url)
        assert upgraded.result() == migrate.head()
