"""The command line in this process, on a data directory that has the tiny base."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import main
from orchestrator.domain.digest import digest_file
from orchestrator.domain.job import Lease
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings
from tests.tiny import make_tiny_base


@dataclass(frozen=True)
class Done:
    """What one command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Done]


def open_tutti(home: Path) -> Tutti:
    return Tutti(read_settings({"TUTTI_HOME": str(home)}, home))


def hold(tutti: Tutti, job_id: str, gang: str = "gang-1") -> Lease:
    """Take a queued job as a controller does, and start it."""
    _, lease = tutti.parts.jobs.claim([job_id], "host:1:1", 60, gang)[job_id]
    tutti.parts.jobs.start(lease)
    return lease


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def home_template(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    with open_tutti(home) as tutti:
        tutti.add_base("tiny", base_folder)
    return home


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is set on this machine, tests see what they set."""
    for name in [name for name in os.environ if name.startswith("TUTTI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def new_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """TUTTI_HOME: a folder that is not there yet."""
    home = tmp_path / "home"
    monkeypatch.setenv("TUTTI_HOME", str(home))
    return home


@pytest.fixture
def home(new_home: Path, home_template: Path) -> Path:
    """TUTTI_HOME, with the tiny base."""
    return Path(shutil.copytree(home_template, new_home))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tasks: Path) -> Run:
    """Run `tutti` as its entry point does."""

    def run_one(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tutti", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return run_one


Meanwhile = Callable[..., None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """What happens while a command waits: one action a pause, then Ctrl-C."""

    def set_actions(*actions: Callable[[], object]) -> None:
        left = list(actions)

        def pause(seconds: float) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr(time, "sleep", pause)

    return set_actions


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder by its digest, but SQLite's own side files."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): digest_file(path)
        for path in files
        if not path.name.endswith(("-wal", "-shm"))
    }
