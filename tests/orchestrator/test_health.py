"""What `tutti doctor` finds, part by part."""

from pathlib import Path

from orchestrator.bootstrap import Parts
from orchestrator.health import _artifacts
from orchestrator.settings import read_settings


def test_the_store_is_written_and_read_and_its_check_is_named(tmp_path: Path) -> None:
    check = _artifacts(Parts(read_settings({"TUTTI_HOME": str(tmp_path)}, tmp_path)))
    assert check.is_ok
    assert check.found == f"{tmp_path / 'artifacts'} (`tutti fsck` checks what is in it)"
