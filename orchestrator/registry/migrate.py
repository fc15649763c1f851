"""Brings a database to the schema of this program, and tells when it is not there.

All steps of an upgrade run in one transaction that holds a lock on the database: killed half-way
it has done nothing, and of two upgrades at once the second finds the work done. Nothing here ever
deletes data but `downgrade`. alembic is loaded where it migrates: most commands only look.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import URL, Connection, inspect, text

from orchestrator.domain.errors import InvalidInput, SchemaMismatch
from orchestrator.registry.engine import (
    create_folder,
    make_engine,
    parse_url,
    sqlite_path,
    transaction,
)
from orchestrator.registry.errors import shown
from orchestrator.registry.tables import REVISION, VERSION_TABLE, metadata

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

T = TypeVar("T")
_RUN_UPGRADE = "Run `tutti db upgrade`."
_ADVISORY_LOCK = 0x7475747469  # "tutti"
# alembic keeps the running migration in module globals, so a process runs one at a time.
_PROCESS_LOCK = threading.Lock()


def upgrade(url: str) -> str:
    """Bring the database to the newest schema, creating it if need be; return its revision."""
    from alembic import command

    parsed = parse_url(url)
    create_folder(parsed)
    _migrate(parsed, lambda config: command.upgrade(config, "head"))
    return head()


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to `revision` ('base': nothing left). Deletes data."""
    from alembic import command

    _migrate(parse_url(url), lambda config: command.downgrade(config, revision))


def head() -> str:
    """The revision this program was written for."""
    return REVISION


def current(url: str) -> str | None:
    """The database's revision; None when it has no Tutti schema (or is not there yet)."""
    parsed = parse_url(url)
    if _is_missing(parsed):
        return None
    return _read(parsed, _revision)


def is_new(url: str) -> bool:
    """Whether this is an embedded database without any table yet."""
    parsed = parse_url(url)
    if sqlite_path(parsed) is None:
        return False
    return _is_missing(parsed) or not _read(parsed, lambda c: inspect(c).get_table_names())


def check(url: str) -> None:
    """Raise SchemaMismatch unless the database has exactly this program's schema."""
    found, wanted = current(url), head()
    if found == wanted:
        return
    place = shown(parse_url(url))
    known = {script.revision for script in _scripts().walk_revisions()}
    if found is None:
        raise SchemaMismatch(f"{place}: the database has no Tutti schema", _RUN_UPGRADE)
    if found in known:
        raise SchemaMismatch(
            f"{place}: the database's schema is {found}, older than this program's {wanted}",
            _RUN_UPGRADE,
        )
    raise SchemaMismatch(
        f"{place}: the database's schema {found} is newer than this program, which knows "
        f"schemas up to {wanted}",
        "Upgrade the program: pip install --upgrade tutti-orchestrator.",
    )


def _migrate(url: URL, step: "Callable[[Config], None]") -> None:
    engine = make_engine(url)
    try:
        with _PROCESS_LOCK, transaction(engine, "EXCLUSIVE") as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            _refuse_foreign_tables(connection, url)
            config = _config()
            config.attributes["connection"] = connection
            step(config)
    finally:
        engine.dispose()


def _refuse_foreign_tables(connection: Connection, url: URL) -> None:
    """Another program's tables of the same names (MLflow has some) must not be touched."""
    tables = set(inspect(connection).get_table_names())
    taken = sorted(tables & set(metadata.tables))
    if VERSION_TABLE not in tables and taken:
        raise InvalidInput(
            f"{shown(url)}: another program's tables are in the way: {', '.join(taken)}",
            "Give Tutti a database of its own.",
        )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    query = text(f"SELECT version_num FROM {VERSION_TABLE}")
    return connection.execute(query).scalar_one_or_none()


def _read(url: URL, question: Callable[[Connection], T]) -> T:
    engine = make_engine(url)
    try:
        with transaction(engine, "DEFERRED") as connection:
            return question(connection)
    finally:
        engine.dispose()


def _is_missing(url: URL) -> bool:
    """Whether an embedded database has no file; connecting would create it."""
    path = sqlite_path(url)
    return path is not None and not path.exists()


def _scripts() -> "ScriptDirectory":
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())


def _config() -> "Config":
    """alembic's configuration. The folder is beside the package in a checkout, inside a wheel."""
    from alembic.config import Config

    package = Path(__file__).parents[1]
    shipped = package / "migrations"
    folder = shipped if shipped.exists() else package.parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config
