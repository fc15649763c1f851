"""What SQLite finds wrong with its file, and views that do not change; test_fsck has the rest."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.registry.consistency import Consistency
from orchestrator.registry.database import Database
from orchestrator.registry.snapshot import snapshot
from orchestrator.registry.tables import quotas


def test_a_database_that_is_well_has_no_damage(database: Database) -> None:
    assert Consistency(database).damages() == []


@pytest.mark.parametrize(
    ("pragma", "statement", "kind"),
    [
        (
            "ignore_check_constraints=ON",
            "INSERT INTO quotas (owner, share) VALUES ('a', 0)",
            "database-damaged",
        ),
        ("foreign_keys=OFF", "INSERT INTO job_dependencies VALUES ('a', 'b')", "row-orphaned"),
    ],
)
def test_what_sqlite_finds_in_its_file_is_a_fault(
    sqlite_template: Path, tmp_path: Path, pragma: str, statement: str, kind: str
) -> None:
    path = shutil.copy(sqlite_template, tmp_path / "tutti.db")
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA {pragma}")
        connection.execute(statement)
    database = Database.open(f"sqlite:///{path}")
    assert {fault.kind for fault in Consistency(database).damages()} == {kind}
    database.close()


def test_a_snapshot_does_not_see_what_is_committed_meanwhile(database: Database) -> None:
    count = text("SELECT count(*) FROM quotas")
    with snapshot(database) as connection:
        assert connection.execute(count).scalar_one() == 0
        with database.write() as other:
            other.execute(quotas.insert().values(owner="a", share=1.0))
        assert connection.execute(count).scalar_one() == 0
    with snapshot(database) as connection:
        assert connection.execute(count).scalar_one() == 1
