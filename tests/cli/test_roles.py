"""On a real PostgreSQL, people with roles at the command line: what a role does not allow exits
with 4 and says which role it needs; nothing is moved."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import create_engine, make_url, text

from encoders.files.weights_file import dump_tensors
from orchestrator.domain.prompt_version import Lineage, PromptRef, TrainedPrompt
from orchestrator.registry import migrate
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.mlflow_mirror import Delivery
from tests.cli.conftest import Done, Run
from tests.postgres_server import postgres_server

pytestmark = pytest.mark.postgres
PEOPLE = {
    "vic": ("viewer", "*"),
    "tina": ("trainer", "*"),
    "paula": ("promoter", "colour*"),
    "ctl": ("controller", "*"),
    "ada": ("admin", "*"),
}
As = Callable[..., Done]


@pytest.fixture(scope="module")
def owner_url() -> Iterator[str]:
    with postgres_server() as uri:
        url = make_url(uri).set(drivername="postgresql+psycopg")
        admin = create_engine(url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("CREATE DATABASE tutti_roles"))
        admin.dispose()
        made = url.set(database="tutti_roles").render_as_string(hide_password=False)
        migrate.upgrade(made)
        yield made


def open_as(url: str, home: Path) -> Tutti:
    return Tutti(read_settings({"TUTTI_HOME": str(home), "TUTTI_DATABASE_URL": url}, home))


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roles")


@pytest.fixture(scope="module")
def urls(owner_url: str, shared_home: Path) -> dict[str, str]:
    """A login each, and two versions of two tasks; production is at the second."""
    from orchestrator.domain.access import Role

    with open_as(owner_url, shared_home) as tutti:
        logins = {
            name: tutti.add_access(name, Role(role), tasks)
            for name, (role, tasks) in PEOPLE.items()
        }
        for task in ("colour", "shape"):
            for seed in (1, 2):
                tutti.parts.prompts.register(trained(tutti, task, seed))
                tutti.parts.prompts.promote(PromptRef(task, seed), "production", "postgres")
        return {name: str(url) for name, url in logins.items()} | {"owner": owner_url}


def trained(tutti: Tutti, task: str, seed: int) -> TrainedPrompt:
    tokens = torch.full((4, 8), float(seed))
    artifact = tutti.parts.artifacts.put_bytes(dump_tensors({"prompt_embeddings": tokens}))
    config = {"template": "{prompt:4}{word} {colour}", "answer": "colour", "metric": "accuracy"}
    config |= {"num_virtual_tokens": 4, "token_dim": 8}
    lineage = Lineage("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", seed, "0.1.0")
    artifacts = {"encoder": artifact, "prompt_embeddings": artifact}
    return TrainedPrompt(task, config, {"accuracy": 0.5}, artifacts, lineage)


@pytest.fixture
def as_(run: Run, urls: dict[str, str], shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> As:
    """Run a command as one of the people; a home, and so an MLflow, is everybody's."""

    def act(name: str, *command: object) -> Done:
        monkeypatch.setenv("TUTTI_HOME", str(shared_home))
        monkeypatch.setenv("TUTTI_DATABASE_URL", urls[name])
        return run(*command)

    return act


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is away: it takes seconds to import, and these are not about it."""
    away = Delivery(0, 1, "it is away")
    monkeypatch.setattr("orchestrator.sdk.Tutti.deliver", lambda self: away)


def standing(as_: As) -> list[Any]:
    moves = as_("owner", "prompts", "history", "colour", "--json").json
    return [moves, as_("owner", "access", "list", "--json").json]


PROMOTE = ("prompts", "promote", "colour@1")
ROLLBACK = ("prompts", "rollback", "colour")
APPROVE = ("prompts", "approve", "colour@2", "--note", "fine")
ADD = ("access", "add", "eve", "--role", "admin")


@pytest.mark.usefixtures("no_mlflow")
@pytest.mark.parametrize(
    ("name", "command", "needed"),
    [
        *((name, move, "promoter") for name in ("vic", "tina") for move in (PROMOTE, ROLLBACK)),
        *((name, APPROVE, "promoter") for name in ("vic", "tina")),
        *((name, ADD, "admin") for name in ("vic", "tina", "paula", "ctl")),
        *((name, ("access", "remove", "ada"), "admin") for name in ("vic", "tina", "ctl")),
        ("vic", ("access", "add", "vic", "--role", "admin"), "admin"),
        ("vic", ("prompts", "describe", "colour@1", "hidden"), "trainer"),
        ("paula", ("prompts", "promote", "shape@1"), "promoter"),
        ("paula", ("prompts", "rollback", "shape"), "promoter"),
        ("paula", (*PROMOTE, "--when", "approvals >= 9", "--force"), "admin"),
        ("ctl", (*PROMOTE, "--when", "approvals >= 9", "--force"), "admin"),
    ],
    ids=str,
)
def test_what_a_role_does_not_allow_exits_with_4(
    as_: As, name: str, command: tuple[str, ...], needed: str
) -> None:
    before = standing(as_)
    done = as_(name, *command)
    assert (done.code, done.out) == (4, ""), done.err
    assert f"{name} may not " in done.err
    assert f"needs the role {needed}" in done.err
    assert "tutti access add" in done.err
    assert "Traceback" not in done.err
    assert standing(as_) == before


@pytest.mark.usefixtures("no_mlflow")
def test_a_promoter_promotes_rolls_back_and_approves_within_their_tasks(as_: As) -> None:
    done = as_("paula", "prompts", "promote", "colour@1", "--reason", "calmer")
    assert (done.code, done.out) == (0, "colour@production: colour@2 -> colour@1\n"), done.err
    done = as_("paula", "prompts", "rollback", "colour")
    assert (done.code, done.out) == (0, "colour@production: colour@1 -> colour@2\n"), done.err
    assert as_("paula", *APPROVE).code == 0
    moves = as_("vic", "prompts", "history", "colour", "--json").json
    assert [move["actor"] for move in moves[:2]] == ["paula", "paula"]


@pytest.mark.usefixtures("no_mlflow")
def test_an_admin_gives_and_takes_roles(as_: As) -> None:
    done = as_("ada", "access", "add", "tina", "--role", "promoter", "--tasks", "colour")
    assert done.code == 0, done.err
    assert as_("tina", *PROMOTE).code == 0
    assert as_("ada", "access", "remove", "tina", "--tasks", "colour").code == 0
    assert as_("tina", *ROLLBACK).code == 4
    assert as_("paula", *ROLLBACK).code == 0


@pytest.mark.usefixtures("no_mlflow")
def test_show_says_as_whom_one_acts(as_: As) -> None:
    found = as_("paula", "access", "show", "--json").json
    assert (found["actor"], found["is_owner"]) == ("paula", False)
    assert [(a["role"], a["task_pattern"]) for a in found["accesses"]] == [("promoter", "colour*")]


def test_who_may_not_promote_may_not_adopt_what_mlflow_says(as_: As, shared_home: Path) -> None:
    assert as_("ctl", "mlflow", "sync").code == 0
    client = open_client(f"sqlite:///{shared_home / 'mlflow.db'}")
    client.set_registered_model_alias("colour", "production", "1")
    before = standing(as_)
    refused = as_("tina", "mlflow", "sync", "--adopt")
    assert refused.code == 1
    assert "nothing: tina may not " in refused.out
    assert "needs the role promoter on colour, and tina is trainer there" in refused.out
    assert "Traceback" not in refused.err
    assert standing(as_) == before

    adopted = as_("paula", "mlflow", "sync", "--adopt")
    assert adopted.code == 1  # MLflow is for a controller to tell
    assert "colour@1 promoted" in adopted.out
    assert "paula may not update rows of outbox: that needs the role controller" in adopted.err
    assert standing(as_)[0][0]["actor"] == "mlflow, adopted by paula"
    settled = as_("ctl", "mlflow", "sync")
    assert (settled.code, settled.out) == (0, ""), settled.err
