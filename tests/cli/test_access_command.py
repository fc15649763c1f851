"""`tutti access` on SQLite, which has no access control, and says so."""

import getpass

from tests.cli.conftest import Run


def test_show_names_the_operating_systems_user(run: Run) -> None:
    done = run("access", "show", "--json")
    assert done.json == {"actor": getpass.getuser(), "is_owner": True, "accesses": []}
    assert "no access control" in run("access", "show").err


def test_add_is_refused_where_nothing_would_hold_to_it(run: Run) -> None:
    done = run("access", "add", "ann", "--role", "trainer", "--tasks", "country-*")
    assert done.code == 2
    assert "no access control" in done.err
    assert run("access", "list", "--json").json == []
