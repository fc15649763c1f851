from pathlib import Path

import pytest

from orchestrator.domain.gang import GangOrder
from tests.cli.conftest import Run, open_tutti


@pytest.fixture
def gang(home: Path) -> str:
    """A gang that trains, and one that has ended."""
    order = GangOrder("gang-1", "f" * 64, 256, "0.1.0", 0, 1, 2)
    ended = GangOrder("gang-0", "f" * 64, 256, "0.1.0", 0, 1, 2)
    with open_tutti(home) as tutti:
        for each in (ended, order):
            tutti.parts.gangs.open(each, "host:12:1")
        tutti.parts.gangs.close("gang-0", "node lost")
        tutti.parts.gangs.beat("gang-1", None, 2, 0.25, 4000.0)
    return order.name


def test_gangs_that_are_up_are_listed(run: Run, home: Path, gang: str) -> None:
    (listed,) = run("gangs", "list", "--json").json
    assert (listed["name"], listed["num_workers"], listed["step_s"]) == ("gang-1", 2, 0.25)
    row = run("gangs", "list").out.splitlines()[1]
    assert row.split()[:7] == ["gang-1", "f" * 12, "training", "2", "0", "0.25", "4000"]
    assert row.endswith("host (pid 12)")


def test_all_gangs_are_those_that_have_ended_too(run: Run, home: Path, gang: str) -> None:
    assert len(run("gangs", "list", "--all", "--json").json) == 2
    assert "ended: node lost" in run("gangs", "list", "--all").out


def test_no_gangs_are_an_empty_list_and_a_hint(run: Run, home: Path) -> None:
    assert run("gangs", "list", "--json").json == []
    assert "no gang is up" in run("gangs", "list").err


def test_a_gang_is_asked_to_drain(run: Run, home: Path, gang: str) -> None:
    done = run("gangs", "drain", gang)
    assert done.code == 0
    (listed,) = run("gangs", "list", "--json").json
    assert listed["is_drain_asked"] is True
    assert "training, drains" in run("gangs", "list").out


def test_a_gang_that_is_not_there_cannot_be_drained(run: Run, home: Path, gang: str) -> None:
    done = run("gangs", "drain", "gang-x")
    assert (done.code, done.out) == (2, "")
    assert "gang-x" in done.err
    assert "Traceback" not in done.err
