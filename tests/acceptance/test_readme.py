"""Every command of the README runs as it stands there, in a copy of the examples made tiny.

It does so on a real PostgreSQL: the rest of the acceptance tests have SQLite.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.conftest import TIMEOUT_S, TUTTI, Home
from tests.postgres_server import postgres_server
from tests.tiny import make_tiny_base, write_rows

pytestmark = [pytest.mark.ray, pytest.mark.postgres]
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The `$ ...` lines of the README's console blocks, in order."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    return re.findall(r"^\$ (.+)$", "\n".join(blocks), flags=re.MULTILINE)


def shrink_examples(folder: Path) -> None:
    """The committed examples with two of their tasks, few rows, and two steps each."""
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("*.py"))
    specs = sorted((folder / "examples/tasks").glob("*.yaml"))
    for spec in specs:
        if spec.stem not in ("country-continent", "language-id"):
            spec.unlink()
            continue
        value: dict[str, Any] = yaml.safe_load(spec.read_text())
        value["training"] = {"steps": 2, "batch_size": 2}
        value["evaluation"]["every"] = 2
        value["promote"] = {"alias": "production"}
        spec.write_text(yaml.safe_dump(value, sort_keys=False))
        for file in value["data"].values():
            data = spec.parent / file
            data.write_text("".join(data.read_text().splitlines(keepends=True)[:6]))
    sweep = folder / "examples/sweeps/country-continent.yaml"
    value = yaml.safe_load(sweep.read_text())
    value["training"], value["evaluation"]["every"] = {"steps": 2, "batch_size": 2}, 2
    value["sweep"] = {"over": {"training.learning_rate": [0.01, 0.02]}}
    sweep.write_text(yaml.safe_dump(value, sort_keys=False))


def write_animals(folder: Path) -> None:
    """The README's own task: its spec is taken from the page, its data written here."""
    spec = re.search(r"```yaml\n# animals.yaml\n(.*?)```", README, flags=re.DOTALL)
    assert spec is not None
    (folder / "animals.yaml").write_text(spec.group(1))
    names = {"salmon": "fish", "trout": "fish", "robin": "bird", "eagle": "bird"}
    rows = [{"animal": animal, "class": kind} for animal, kind in names.items()]
    write_rows(folder / "animals.train.jsonl", rows)
    write_rows(folder / "animals.eval.jsonl", rows[::-1])
    requests = [{"task": "animal-class", "fields": {"animal": "trout"}}]
    (folder / "animals.requests.jsonl").write_text(json.dumps(requests[0]) + "\n")


@pytest.fixture
def postgres_url() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_readme_command_runs(tmp_path: Path, postgres_url: str) -> None:
    home = Home(tmp_path / "home", tmp_path / "work", {"TUTTI_DATABASE_URL": postgres_url})
    home.tasks.mkdir()
    refused = home.tutti("base", "list")
    assert refused.returncode == 1
    assert "tutti db upgrade" in refused.stderr
    assert home.tutti("db", "upgrade").returncode == 0
    shrink_examples(home.tasks)
    write_animals(home.tasks)
    base = make_tiny_base(tmp_path / "base", max_length=1024)
    (home.tasks / "path/to/transformers").mkdir(parents=True)
    make_tiny_base(home.tasks / "path/to/transformers/folder", seed=1)
    assert home.tutti("base", "add", "smollm2-135m", base).returncode == 0
    spec = yaml.safe_load((home.tasks / "animals.yaml").read_text())
    spec["promote"]["when"] = "accuracy >= 0"  # a random base learns nothing
    (home.tasks / "animals.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    found = commands()
    assert len(found) > 15
    for command in found:
        started = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=home.tasks,
            env=home.env | {"PATH": f"{TUTTI.parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        print(f"{time.monotonic() - started:.1f} s: $ {command}")
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    assert len((home.tasks / "answers.jsonl").read_text().splitlines()) > 1
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert examples
    for example in examples:
        command = [sys.executable, "-c", example]
        done = subprocess.run(
            command, cwd=home.tasks, env=home.env, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr


def test_readme_names_every_command_and_setting() -> None:
    from orchestrator.cli.app import COMMANDS
    from orchestrator.settings import Settings

    assert [name for name in COMMANDS if f"tutti {name}" not in README] == []
    settings = [f"TUTTI_{name.upper()}" for name in Settings.model_fields]
    assert [name for name in settings if name not in README] == []
