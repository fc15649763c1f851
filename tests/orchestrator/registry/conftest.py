"""Every test runs on SQLite and on a real PostgreSQL, each time on a database without rows.

SQLite: a copy of a file that was migrated once. PostgreSQL: one database, emptied (creating one
takes 0.1 s and more); a test that changes the schema takes `empty_url`, a database of its own.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, make_url, text

from orchestrator.domain.digest import digest_json
from orchestrator.domain.job import Lease, Submission
from orchestrator.domain.prompt_version import Artifact, Lineage, TrainedPrompt
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.registry import migrate
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.tables import metadata
from tests.postgres_server import postgres_server

BASE = digest_json("base")
MakeUrl = Callable[[], str]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


@pytest.fixture(scope="session")
def new_postgres_url(postgres_uri: str) -> Iterator[MakeUrl]:
    """Makes an empty database on a real server, and returns its URL."""
    url = make_url(postgres_uri).set(drivername="postgresql+psycopg")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    numbers = itertools.count()

    def make() -> str:
        name = f"tutti_{next(numbers)}"
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        return url.set(database=name).render_as_string(hide_password=False)

    with admin.connect() as connection:
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            connection.execute(text(f"ALTER SYSTEM SET {setting}"))
        connection.execute(text("SELECT pg_reload_conf()"))
    yield make
    admin.dispose()


@pytest.fixture(scope="session")
def empty_postgres(new_postgres_url: MakeUrl) -> Iterator[MakeUrl]:
    """Empties the one migrated database, past its triggers, and returns its URL."""
    url = new_postgres_url()
    migrate.upgrade(url)
    engine = create_engine(url)

    def empty() -> str:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            for table in metadata.tables.values():
                connection.execute(delete(table))
        return url

    yield empty
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database_url(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A database with the newest schema and no rows."""
    if dialect == "sqlite":
        path = shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "tutti.db")
        return f"sqlite:///{path}"
    return str(request.getfixturevalue("empty_postgres")())


@pytest.fixture
def empty_url(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A database without a schema; the SQLite file is not there yet."""
    if dialect == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("new_postgres_url")())


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database.open(database_url)
    yield opened
    opened.close()


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database)


@pytest.fixture
def registry(database: Database) -> PromptRegistry:
    return PromptRegistry(database)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


@pytest.fixture(scope="session")
def submission() -> Callable[..., Submission]:
    """A submission of `task`; `nonce` makes it another one."""

    def make(task: str = "color", nonce: str = "", **changes: Any) -> Submission:
        spec = TaskSpec.model_validate(
            {
                "task": task,
                "base": "tiny",
                "template": "{text}{prompt:2} {label}",
                "answer": "label",
                "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            }
        )
        data = {"train": digest_json("train"), "eval": digest_json("eval")}
        made = Submission(spec, BASE, data, {"train": 8, "eval": 4}, 96.5, nonce)
        return replace(made, **changes)

    return make


@pytest.fixture(scope="session")
def trained() -> Callable[..., TrainedPrompt]:
    """A result of `task`; `content` decides its weights, hence its digest."""

    def make(task: str = "color", content: Any = 0, accuracy: float = 0.5) -> TrainedPrompt:
        artifacts = {
            name: Artifact(digest_json([name, content]), 100)
            for name in ("encoder", "prompt_embeddings", "curve")
        }
        lineage = Lineage("tiny", BASE, {"train": "d"}, {"train": 8}, "s", 0, "0.1.0")
        return TrainedPrompt(
            task, {"template": "{text}"}, {"accuracy": accuracy}, artifacts, lineage
        )

    return make


@pytest.fixture
def running(queue: JobQueue, submission: Callable[..., Submission]) -> Callable[..., Lease]:
    """The lease of a new job that is running."""

    def make(task: str = "color", nonce: str = "") -> Lease:
        job, created = queue.submit(submission(task, nonce), "ann")
        assert created
        _, lease = queue.claim([job.id], "controller", 60, "gang-1")[job.id]
        queue.start(lease)
        return lease

    return make
