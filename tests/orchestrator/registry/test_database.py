"""A database opens on the right schema only, and says what is wrong without showing a password."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, make_url, select, text
from sqlalchemy.exc import IntegrityError as SqlIntegrityError
from sqlalchemy.exc import ProgrammingError

from orchestrator.domain.errors import InvalidInput, SchemaMismatch, TuttiError
from orchestrator.registry import migrate
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import now
from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.registry.tables import attempts, tasks


def test_new_embedded_database_is_created_with_its_folder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'er' / 'tutti.db'}"
    Database.open(url).close()
    assert migrate.current(url) == migrate.head()


def test_new_server_database_is_not_upgraded_by_itself(empty_url: str, dialect: str) -> None:
    if dialect == "sqlite":
        Database.open(empty_url).close()
        return
    with pytest.raises(SchemaMismatch, match="tutti db upgrade"):
        Database.open(empty_url)


def test_embedded_database_waits_syncs_and_checks_keys(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'tutti.db'}")
    with database.read() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
        }
    assert found == {
        "journal_mode": "wal",
        "busy_timeout": 30_000,
        "synchronous": 2,
        "foreign_keys": 1,
    }


def test_exception_in_a_write_leaves_nothing(database: Database) -> None:
    def write_and_fail() -> None:
        with database.write() as connection:
            connection.execute(insert(tasks).values(name="color", last_version=0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    with database.read() as connection:
        assert connection.execute(select(tasks)).all() == []


def test_a_look_sees_what_others_commit_meanwhile_and_leaves_no_trace(database: Database) -> None:
    names = select(tasks.c.name)
    with database.look() as connection:
        assert connection.execute(names).all() == []
        with database.write() as other:  # a read's snapshot would hide it
            other.execute(insert(tasks).values(name="color", last_version=0))
        assert connection.execute(names).scalars().all() == ["color"]
    with pytest.raises(ZeroDivisionError), database.write() as connection:  # transactions are back
        connection.execute(insert(tasks).values(name="taste", last_version=0))
        raise ZeroDivisionError
    with database.look() as connection:
        assert connection.execute(names).scalars().all() == ["color"]


@pytest.mark.postgres
@pytest.mark.parametrize(
    "statements",
    [
        ("SET TRANSACTION READ ONLY", "INSERT INTO tasks VALUES ('color', 0)"),
        ("SELECT pg_terminate_backend(pg_backend_pid())",),
        ("SET LOCAL idle_in_transaction_session_timeout = 1", "idle", "SELECT 1"),
    ],
)
def test_server_that_ends_a_transaction_is_away(
    empty_postgres: Callable[[], str], statements: tuple[str, ...]
) -> None:
    database = Database.open(empty_postgres())

    def run() -> None:
        with database.write() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            for statement in statements:
                if statement == "idle":
                    await_end(pid)
                else:
                    connection.execute(text(statement))

    def await_end(pid: int) -> None:
        seen = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        while True:
            with database.read() as other:
                if other.execute(seen, {"pid": pid}).scalar_one() == 0:
                    return

    with pytest.raises(DatabaseUnavailable):
        run()
    with database.read() as connection:
        assert connection.execute(select(tasks)).all() == []
    database.close()


@pytest.mark.postgres
def test_wrong_statement_is_not_taken_for_an_absence(empty_postgres: Callable[[], str]) -> None:
    database = Database.open(empty_postgres())
    with pytest.raises(ProgrammingError), database.write() as connection:
        connection.execute(text("SELECT no_such_column FROM tasks"))
    database.close()


def test_foreign_keys_are_enforced(database: Database) -> None:
    orphan = {"job_id": "none", "number": 1, "epoch": 1, "holder": "a"}
    with pytest.raises(SqlIntegrityError), database.write() as connection:
        connection.execute(insert(attempts).values(**orphan, started_at=now()))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "not a url",
        "mysql://ann:secret@host/name",
        "postgresql+asyncpg://ann:secret@host/name",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:name?mode=ro",
        "postgresql://ann:secret@host:port/name",
    ],
)
def test_wrong_url_is_refused_with_examples_and_no_password(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Database.open(url)
    assert "sqlite:////absolute/path.db or postgresql://" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@127.0.0.1:1/name",
        "postgres://127.0.0.1:1/name?user=ann&password=s3cret",
    ],
)
def test_unreachable_server_is_named_without_password(url: str) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        Database.open(url)
    assert "127.0.0.1:1" in str(caught.value)
    assert "Check that the server runs" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(Database(url))


def test_server_database_that_is_not_there_is_named(database_url: str, dialect: str) -> None:
    if dialect == "postgres":
        url = make_url(database_url).set(database="no_such").render_as_string(hide_password=False)
        with pytest.raises(DatabaseUnavailable, match='database "no_such" does not exist'):
            Database.open(url)


def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but of more than a few bytes\n" * 50)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match=r"notes\.txt: not a usable SQLite database"):
        Database.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="unable to open database file"):
        Database.open(f"sqlite:///{tmp_path}")


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TuttiError, match="folder cannot be created"):
        Database.open(f"sqlite:///{tmp_path / 'file' / 'folder' / 'tutti.db'}")


def test_sqlite_file_of_another_program_is_refused_untouched(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with Database(url).write() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num TEXT)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('abc')")
    with pytest.raises(SchemaMismatch, match="no Tutti schema"):
        Database.open(url)
