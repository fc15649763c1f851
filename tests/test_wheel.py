"""The wheel carries all that an installed `tutti` needs, its migrations among it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from orchestrator.registry import migrate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_wheel_carries_packages_types_and_migrations(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"encoders/py.typed", "orchestrator/py.typed"} <= set(names)
    assert "orchestrator/migrations/env.py" in names
    assert any(name.startswith("orchestrator/migrations/versions/0001") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "examples/", "migrations/"))]


def test_installed_wheel_upgrades_a_database(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    program = "import sys; from orchestrator.cli import main; sys.argv[0] = 'tutti'; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "db", "upgrade"],
        env={**os.environ, "PYTHONPATH": str(site), "TUTTI_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == migrate.head()
    assert (tmp_path / "home/tutti.db").is_file()
