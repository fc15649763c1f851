"""Stale prompts are those on a base their base's name no longer means, and can be trained again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.spec_file import read_spec
from orchestrator.sdk import Tutti
from tests.orchestrator.questions.conftest import Register
from tests.tiny import write_task

Replace = Callable[[], str]


@pytest.fixture
def replace_base(tutti: Tutti, other_base: Path) -> Replace:
    """Makes the name `tiny` mean another base."""

    def replace() -> str:
        tutti.add_base("tiny", other_base, replace=True)
        return tutti.base("tiny").fingerprint

    return replace


def test_nothing_is_stale_while_names_mean_what_they_meant(
    tutti: Tutti, register: Register
) -> None:
    register()
    assert tutti.stale() == []


def test_the_newest_version_on_a_superseded_base_is_stale(
    tutti: Tutti, register: Register, replace_base: Replace
) -> None:
    register(0)
    register(1)
    register(0, task="shape")
    register(0, task="elsewhere", lineage={"base": "other"})
    now = replace_base()
    found = tutti.stale()
    assert [(each.version.ref, each.current_base) for each in found] == [
        ("shape@1", now),
        ("colour@2", now),
    ]
    assert [each.version.ref for each in tutti.stale(limit=1)] == ["shape@1"]
    register(2)  # retrained
    assert [each.version.ref for each in tutti.stale()] == ["shape@1"]


def test_a_name_that_returns_to_the_old_base_makes_nothing_stale(
    tutti: Tutti, register: Register, replace_base: Replace
) -> None:
    old = tutti.base_folder(tutti.base("tiny").fingerprint)
    register(0)
    replace_base()
    tutti.add_base("tiny", old, replace=True)
    assert tutti.stale() == []


def test_what_is_written_trains_the_prompt_again_on_the_new_base(
    tutti: Tutti, register: Register, replace_base: Replace, tmp_path: Path
) -> None:
    source = write_task(tmp_path / "source", "colour", candidates=["red", "blue"])
    (job,) = (each.job for each in tutti.submit([source]))
    register(0, job=job.id)
    register(0, task="shape")
    now = replace_base()
    stale = tutti.stale()
    assert {each.version.task: each.submission is not None for each in stale} == {
        "colour": True,
        "shape": False,
    }
    (path,) = tutti.write_retraining(stale, tmp_path / "again")
    assert path == tmp_path / "again" / "colour.yaml"
    before, after = read_spec(source), read_spec(path)
    assert after.model_copy(update={"data": before.data}) == before
    (again,) = tutti.submit([path])
    assert again.is_new
    assert again.job.submission.base_fingerprint == now
    assert again.job.submission.datasets == job.submission.datasets


def test_nothing_is_ever_overwritten(
    tutti: Tutti, register: Register, replace_base: Replace, tmp_path: Path
) -> None:
    job = tutti.submit([write_task(tmp_path, "colour")])[0].job
    register(0, job=job.id)
    replace_base()
    folder = tmp_path / "again"
    (folder / "data").mkdir(parents=True)
    taken = folder / "data" / "colour.eval.jsonl"
    taken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="there already; nothing was written"):
        tutti.write_retraining(tutti.stale(), folder)
    assert list((folder / "data").iterdir()) == [taken]
    assert list(folder.iterdir()) == [folder / "data"]
