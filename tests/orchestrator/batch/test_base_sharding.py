"""How a run's bases are held, by settings and memory; the workers are in this process."""

from pathlib import Path

import pytest

from orchestrator.batch.base_sharding import plan_bases, split_plan
from orchestrator.batch.run import Watch
from orchestrator.batch.start import resume_batch, run_batch
from orchestrator.bootstrap import Parts
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import Node
from orchestrator.scheduling.shard_plan import ShardPlan
from tests.orchestrator.batch.conftest import Files, InlinePool, open_parts


def planned(home: Path, **settings: str) -> ShardPlan:
    parts = open_parts(home, **settings)
    try:
        return plan_bases(parts, [parts.bases.list()[0].fingerprint])
    finally:
        parts.close()


def test_a_small_base_is_whole_and_nothing_is_said(home: Path) -> None:
    made = planned(home)
    assert (made.zero_stage, made.reason) == (0, "")


def test_the_setting_decides_without_a_look_at_machines(home: Path) -> None:
    made = planned(home, TUTTI_ZERO_STAGE="3", TUTTI_DEVICE_MEMORY_GB="0.1")
    assert made.reason == "tiny: split over the workers (stage 3, as asked for)"
    assert planned(home, TUTTI_ZERO_STAGE="0", TUTTI_DEVICE_MEMORY_GB="0.1").zero_stage == 0


def test_a_base_that_does_not_fit_is_split_or_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parts, "nodes", lambda self: [Node(2, 10**10)])
    with pytest.raises(TuttiError, match=r"split over 2 workers .* would still take 0\.5 GB"):
        planned(home, TUTTI_DEVICE_MEMORY_GB="0.1")
    assert planned(home, TUTTI_DEVICE_MEMORY_GB="2").zero_stage == 0


def test_workers_are_told_how_few_of_them_hold_the_base(parts: Parts) -> None:
    assert split_plan(parts, ShardPlan(0, "none", "")) is None
    split = split_plan(parts, ShardPlan(3, "cpu", "", min_workers=2))
    assert split is not None
    assert (split.min_workers, split.max_workers, split.offload) == (2, 2, "cpu")
    assert split.start_timeout_s == parts.settings.start_timeout_s


def test_a_run_goes_on_as_it_began_unless_the_setting_says_otherwise(
    home: Path, files: Files
) -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise TuttiError("the disk is full")

    parts, notes = open_parts(home, TUTTI_ZERO_STAGE="3"), list[str]()
    with pytest.raises(TuttiError, match="disk is full"):
        run_batch(parts, files.request(), None, InlinePool(fail))
    (run,) = parts.batches.list()
    parts.close()
    again = open_parts(home)
    with pytest.raises(TuttiError, match="disk is full"):
        resume_batch(again, run.id, Watch(note=notes.append), InlinePool(fail))
    again.close()
    assert notes == ["tiny: split over the workers (stage 3), as the run began"]
    whole = open_parts(home, TUTTI_ZERO_STAGE="0")
    resume_batch(whole, run.id, Watch(note=notes.append), InlinePool())
    whole.close()
    assert len(notes) == 2
    assert "the run began with its bases split: its later rows may differ" in notes[1]


def test_the_plan_is_said_once_in_a_line(home: Path, files: Files) -> None:
    parts, notes = open_parts(home, TUTTI_ZERO_STAGE="3"), list[str]()
    run_batch(parts, files.request(), Watch(note=notes.append), InlinePool())
    parts.close()
    assert notes == ["tiny: split over the workers (stage 3, as asked for)"]
