from pathlib import Path

from tests.cli.conftest import Run


def test_a_new_database_has_no_revision_until_it_is_upgraded(run: Run, new_home: Path) -> None:
    before = run("db", "current", "--json").json
    assert (before["revision"], before["is_current"]) == (None, False)
    assert "tutti db upgrade" in run("db", "current").err
    upgraded = run("db", "upgrade", "--json").json
    assert upgraded["revision"] == before["head"]
    after = run("db", "current", "--json").json
    assert after == {**after, "revision": before["head"], "is_current": True}


def test_upgrading_twice_changes_nothing(run: Run, home: Path) -> None:
    first, second = run("db", "upgrade"), run("db", "upgrade")
    assert first == second
    assert first.code == 0
