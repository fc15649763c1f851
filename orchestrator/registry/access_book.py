"""Who has which role, and their logins: roles of PostgreSQL, each with a token for a password.

The token is shown once. Its SCRAM verifier is computed here, so that the server and its logs never
see the token. On SQLite there is no access control: whoever may write the file may write all.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, Connection, delete, select, text

from orchestrator.domain.access import Access, Role, check_access, check_principal
from orchestrator.domain.errors import InvalidInput
from orchestrator.registry.access_grants import group_name, prepare_group
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import insert_into
from orchestrator.registry.engine import parse_url
from orchestrator.registry.errors import AccessDenied
from orchestrator.registry.names import unknown_name
from orchestrator.registry.tables import access

NUM_TOKEN_BYTES = 32
NO_CONTROL = "SQLite has no access control: whoever may write the file may write everything"
Accesses = list[Access]
_VERIFIER = re.compile(r"SCRAM-SHA-256\$[A-Za-z0-9+/=:$]+")
#: Marks the logins that were made here, and so may be dropped here.
_MADE = "made by tutti"


@dataclass(frozen=True)
class Standing:
    """Who this connection acts as. `is_owner`: above all roles. No `user`: SQLite."""

    user: str | None
    is_owner: bool
    accesses: tuple[Access, ...] = ()


class AccessBook:
    """The roles of the principals of one database, and their logins."""

    def __init__(self, database: Database, url: str) -> None:
        self._database, self._url = database, parse_url(url)

    @property
    def has_control(self) -> bool:
        return self._url.get_backend_name() == "postgresql"

    def user(self) -> str | None:
        """The database's user, whom its triggers go by; None on SQLite."""
        return self.standing().user

    def standing(self) -> Standing:
        """Who this process is to the database, and what it may."""
        if not self.has_control:
            return Standing(None, True)
        with self._database.read() as connection:
            user, is_owner = connection.execute(text(_WHO)).one()
            query = select(access).where(access.c.principal == user)
            return Standing(user, is_owner, tuple(_fetch(connection, query)))

    def list(self) -> Accesses:
        with self._database.read() as connection:
            return _fetch(connection, select(access))

    def add(self, given: Access) -> str | None:
        """Give a role on tasks, in place of the one on the same pattern. A principal without a
        login gets one: the URL with its token, which is never shown again; else None.

        Raises InvalidInput, or AccessDenied: roles are an admin's to give, logins the owner's, who
        needs CREATEROLE.
        """
        check_access(given)
        with self._control() as connection:
            values = {"role": str(given.role)}
            key = {"principal": given.principal, "task_pattern": given.task_pattern}
            statement = insert_into(connection, access).values(**key, **values)
            connection.execute(
                statement.on_conflict_do_update(index_elements=list(key), set_=values)
            )
            if _is_member(connection, given.principal):
                return None
            group = prepare_group(connection)
            token = None
            if not _exists(connection, given.principal):
                token = _create_login(connection, given.principal)
            connection.execute(text(f"GRANT {group} TO {_quoted(connection, given.principal)}"))
            return token and self._url_of(given.principal, token)

    def rotate(self, principal: str) -> str:
        """Give a principal a new token in place of the old one: the URL. Open connections stay."""
        with self._control() as connection:
            self._require_login(connection, principal)
            token = secrets.token_urlsafe(NUM_TOKEN_BYTES)
            _execute_ddl(connection, _set_password(connection, "ALTER", principal, token))
            return self._url_of(principal, token)

    def remove(self, principal: str, task_pattern: str | None = None) -> None:
        """Take the roles of a principal (on one pattern). With the last one its login goes; a
        connection still open may do nothing from then on. Raises UnknownName."""
        with self._control() as connection:
            mine = access.c.principal == principal
            gone = delete(access).where(mine)
            if task_pattern is not None:
                gone = gone.where(access.c.task_pattern == task_pattern)
            if connection.execute(gone).rowcount == 0:
                names = select(access.c.principal).distinct().order_by(access.c.principal)
                known = connection.execute(names).scalars().all()
                raise unknown_name("principal with such roles", principal, known, _LIST)
            if connection.execute(select(access).where(mine)).first() is None:
                _drop_login(connection, principal)

    def _url_of(self, principal: str, token: str) -> str:
        url: URL = self._url.set(drivername="postgresql", username=principal, password=token)
        return url.render_as_string(hide_password=False)

    def _require_login(self, connection: Connection, principal: str) -> None:
        if not _is_member(connection, check_principal(principal)):
            query = select(access.c.principal).distinct().order_by(access.c.principal)
            known = connection.execute(query).scalars().all()
            raise unknown_name("principal with a login here", principal, known, _LIST)

    @contextmanager
    def _control(self) -> Iterator[Connection]:
        """A transaction on a database that has access control."""
        if not self.has_control:
            raise InvalidInput(
                NO_CONTROL,
                "Move the registry to PostgreSQL: `tutti db backup`, `tutti db restore`.",
            )
        try:
            with self._database.write() as connection:
                yield connection
        except AccessDenied as error:
            if "needs the role" in error.message:
                raise
            raise AccessDenied(
                f"logins could not be changed: {error.message}",
                "Run it as the owner of Tutti's tables, with CREATEROLE: as a superuser, "
                "ALTER ROLE owner CREATEROLE.",
            ) from error


_LIST = "`tutti access list` shows the principals."
_WHO = (
    "SELECT session_user::text, pg_has_role(session_user, relowner, 'MEMBER') FROM pg_class "
    "WHERE oid = 'access'::regclass"
)


def _fetch(connection: Connection, query: Any) -> Accesses:
    rows = connection.execute(query.order_by(access.c.principal, access.c.task_pattern))
    return [Access(row.principal, Role(row.role), row.task_pattern) for row in rows]


def _exists(connection: Connection, principal: str) -> bool:
    query = text("SELECT 1 FROM pg_roles WHERE rolname = :name")
    return connection.execute(query, {"name": principal}).first() is not None


def _is_member(connection: Connection, principal: str) -> bool:
    query = text(
        "SELECT 1 FROM pg_auth_members WHERE member = (SELECT oid FROM pg_roles WHERE rolname = "
        ":name) AND roleid = (SELECT oid FROM pg_roles WHERE rolname = :group_name)"
    )
    names = {"name": principal, "group_name": group_name(connection)}
    return connection.execute(query, names).first() is not None


def _create_login(connection: Connection, principal: str) -> str:
    token = secrets.token_urlsafe(NUM_TOKEN_BYTES)
    _execute_ddl(connection, _set_password(connection, "CREATE", principal, token))
    name = _quoted(connection, principal)
    connection.execute(text(f"COMMENT ON ROLE {name} IS '{_MADE}'"))
    return token


def _drop_login(connection: Connection, principal: str) -> None:
    """Take the login out of the group; drop it if it was made here and serves no other database."""
    if not _is_member(connection, principal):
        return
    name = _quoted(connection, principal)
    connection.execute(text(f"REVOKE {group_name(connection)} FROM {name}"))
    query = text(
        "SELECT 1 FROM pg_roles WHERE rolname = :name AND shobj_description(oid, 'pg_authid') = "
        ":made AND oid NOT IN (SELECT member FROM pg_auth_members)"
    )
    if connection.execute(query, {"name": principal, "made": _MADE}).first() is None:
        return
    connection.execute(text(f"DROP ROLE {name}"))


def _set_password(connection: Connection, verb: str, principal: str, token: str) -> str:
    """The statement that gives a login its token, as a verifier."""
    driver: Any = connection.connection.driver_connection
    verifier = driver.pgconn.encrypt_password(
        token.encode(), principal.encode(), b"scram-sha-256"
    ).decode()
    assert _VERIFIER.fullmatch(verifier), "libpq makes SCRAM verifiers"
    return f"{verb} ROLE {_quoted(connection, principal)} LOGIN PASSWORD '{verifier}'"


def _execute_ddl(connection: Connection, sql: str) -> None:
    connection.exec_driver_sql(sql)  # a verifier has colons, which text() takes for parameters


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)
