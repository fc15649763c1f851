"""A newcomer's whole way, once for the session: a tiny base, four tasks, one training, real Ray and
DeepSpeed with two workers. Everything goes through the command line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tiny_base, write_task

TUTTI = Path(sys.executable).with_name("tutti")
TIMEOUT_S = 280


@dataclass(frozen=True)
class Home:
    """A data directory and the command line that works on it."""

    folder: Path
    tasks: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TUTTI_")}
        return {**kept, "TUTTI_HOME": str(self.folder), "OMP_NUM_THREADS": "1", **self.settings}

    def tutti(
        self, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run one command and wait."""
        return subprocess.run(
            [str(TUTTI), *map(str, arguments)],
            env={**self.env, **(env or {})},
            cwd=cwd or self.tasks,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def json(self, *arguments: object) -> Any:
        """Run a command with --json and parse what it prints."""
        done = self.tutti(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def until(is_so: Callable[[], Any], what: str, timeout_s: float = 240) -> Any:
    """Look again until there is something to see; the first that is."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"it never came so far: {what}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes data directories that have the tiny base."""
    base = make_tiny_base(tmp_path_factory.mktemp("tiny-base"))

    def make(name: str, **settings: str) -> Home:
        root = tmp_path_factory.mktemp(name)
        home = Home(root / "home", root / "tasks", settings)
        home.tasks.mkdir()
        done = home.tutti("base", "add", "tiny", base)
        assert done.returncode == 0, done.stderr
        return home

    return make


@dataclass(frozen=True)
class Trained:
    """A home whose tasks were trained, and what the training printed."""

    home: Home
    specs: list[Path]
    done: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="session")
def trained(new_home: Any) -> Trained:
    home = new_home("trained")
    specs = [
        write_task(home.tasks, "colour-mlp"),
        write_task(home.tasks, "colour-lstm", encoder={"type": "lstm", "hidden_size": 8}),
        write_task(home.tasks, "refused", promote={"when": "accuracy > 0.99"}),
        write_task(
            home.tasks,
            "spelled",
            template="{prompt:4}{word}: {colour}",
            encoder={"type": "embedding"},
            evaluation={"every": 2, "metric": "exact_match"},
            promote={"when": "loss < 100 and exact_match >= incumbent.exact_match"},
        ),
    ]
    return Trained(home, specs, home.tutti("train", *specs))
