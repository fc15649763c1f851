from datetime import UTC, datetime

import pytest

from orchestrator.cli.output import number, print_fields, print_json, print_table, when
from orchestrator.domain.prompt_version import Artifact


def test_tables_are_aligned_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("task", "value"), [("a", "1"), ("longer", "")], title="results")
    assert capsys.readouterr().out == "results\ntask    value\na       1\nlonger\n"


def test_fields_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"a": "1", "long": "2"})
    assert capsys.readouterr().out == "a     1\nlong  2\n"


def test_values_of_the_domain_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    print_json({"artifact": Artifact("d", 3), "at": moment, "text": "é"})
    out = capsys.readouterr().out
    assert '"digest": "d"' in out
    assert "2026-01-02T03:04:05+00:00" in out
    assert "é" in out


def test_what_is_not_there_is_left_blank() -> None:
    assert (number(None), number(0.0), number(0.5, 3)) == ("", "0.00", "0.500")
    assert when(None) == ""
