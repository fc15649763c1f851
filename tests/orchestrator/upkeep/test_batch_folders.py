"""What batch runs and evaluations left goes after its grace, and never what a run may need."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.batch_data.output_target import RUN_MARK, OutputTarget, open_target
from orchestrator.domain.batch_run import RunLease
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.upkeep.batch_folders import CollectedFolders, LeftFolder, collect_folders
from tests.orchestrator.registry.batch_plans import answer, make_plan

WEEK_S = 7 * 86_400.0
EVALUATION = "e" * 32
OLD = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
Collect = Callable[..., CollectedFolders]


@pytest.fixture
def book(database: Database) -> BatchBook:
    return BatchBook(database)


@pytest.fixture
def evaluations(tmp_path: Path) -> Path:
    return tmp_path / "home" / "evaluations"


@pytest.fixture
def collect(book: BatchBook, queue: JobQueue, evaluations: Path) -> Collect:
    """A collection so many days from now."""

    def run(days: float = 0.0, delete: bool = True, grace_s: float = WEEK_S) -> CollectedFolders:
        now = queue.now() + timedelta(days=days)
        return collect_folders(book, evaluations, now, grace_s, delete)

    return run


def start(book: BatchBook, output: Path, number: int = 0, source: str = "in") -> RunLease:
    """A run with one part written."""
    plan = make_plan((1,), output=str(output))
    lease = book.create(f"{number:032x}", plan, source, "ann", "host:1:1", 60)
    folder = open_target(OutputTarget.parse(plan.output), lease.run_id)
    (Path(folder) / "part-00000.jsonl").write_bytes(b"{}\n")
    return lease


def finish(book: BatchBook, lease: RunLease) -> None:
    book.commit(lease, [answer(claim, 1) for claim in book.claim(lease)])
    book.finish(lease, 1.0)


def make_old(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (OLD, OLD))


def names(folders: tuple[LeftFolder, ...]) -> list[str]:
    return [Path(folder.place).name for folder in folders]


def test_parts_of_a_cancelled_run_go_after_the_grace(
    book: BatchBook, collect: Collect, tmp_path: Path
) -> None:
    lease = start(book, tmp_path / "answers.jsonl")
    parts = tmp_path / f".answers.jsonl.parts-{lease.run_id}"
    (parts / f".part-00001.jsonl.{'0' * 32}.part").write_bytes(b"half")
    assert collect(8) == CollectedFolders()
    book.cancel(lease.run_id)
    assert names(collect(6.9).waiting) == [parts.name]
    shown = collect(7.1, delete=False)
    assert (names(shown.due), shown.removed, parts.is_dir()) == ([parts.name], (), True)
    assert shown.due[0].num_bytes == 3 + 4 + 33
    assert names(collect(7.1).removed) == [parts.name]
    assert not parts.exists()
    assert collect(8) == CollectedFolders()


@pytest.mark.parametrize("end", ["running", "left", "failed"])
def test_parts_of_a_run_that_may_be_resumed_stay(
    book: BatchBook, collect: Collect, tmp_path: Path, end: str
) -> None:
    lease = start(book, tmp_path / "answers.jsonl")
    if end == "failed":
        book.fail(lease, "why", 1.0)
    elif end == "left":
        book.release(lease, 1.0)
    assert collect(1000) == CollectedFolders()
    assert book.lead(lease.run_id, "host:1:1", 60, lambda holder: True).epoch == 2


def test_folder_that_the_user_named_stays(
    book: BatchBook, collect: Collect, tmp_path: Path
) -> None:
    book.cancel(start(book, tmp_path / "answers").run_id)
    assert collect(1000) == CollectedFolders()
    assert (tmp_path / "answers" / "part-00000.jsonl").is_file()


def test_strange_file_among_the_parts_stays(
    book: BatchBook, collect: Collect, tmp_path: Path
) -> None:
    lease = start(book, tmp_path / "answers.jsonl")
    parts = tmp_path / f".answers.jsonl.parts-{lease.run_id}"
    (parts / "notes.txt").write_text("mine")
    book.cancel(lease.run_id)
    collect(8)
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]


def test_folder_marked_as_another_runs_stays(
    book: BatchBook, collect: Collect, tmp_path: Path
) -> None:
    lease = start(book, tmp_path / "answers.jsonl")
    parts = tmp_path / f".answers.jsonl.parts-{lease.run_id}"
    (parts / RUN_MARK).write_text("7" * 32)
    book.cancel(lease.run_id)
    assert collect(8) == CollectedFolders()


def test_what_cannot_be_looked_at_is_said_and_the_others_go(
    book: BatchBook, collect: Collect, tmp_path: Path
) -> None:
    plan = make_plan((1,), output="nowhere://bucket/answers.jsonl")
    away = book.create("a" * 32, plan, "in", "ann", "host:1:1", 60)
    lease = start(book, tmp_path / "answers.jsonl")
    for run in (away, lease):
        book.cancel(run.run_id)
    found = collect(8)
    assert len(found.removed) == 1
    (why,) = found.failed
    assert why.startswith("parts of batch run aaaaaaaaaaaa: ")


def test_evaluation_goes_after_its_grace(
    book: BatchBook, collect: Collect, evaluations: Path
) -> None:
    folder = evaluations / EVALUATION
    for number in (0, 1):
        finish(book, start(book, folder / f"run-{number}", number))
    (folder / "rows-0.jsonl").write_bytes(b"rows")
    make_old(folder)
    assert names(collect(6.9).waiting) == [EVALUATION]  # since its runs ended
    assert names(collect(7.1).removed) == [EVALUATION]
    assert list(evaluations.iterdir()) == []


def test_evaluation_whose_files_are_new_stays(
    book: BatchBook, collect: Collect, evaluations: Path
) -> None:
    """It was killed before its first run, or splits its rows now."""
    folder = evaluations / EVALUATION
    folder.mkdir(parents=True)
    (folder / "rows-0.jsonl").write_bytes(b"rows")
    assert names(collect(0.01, grace_s=1.0).waiting) == [EVALUATION]  # an hour at least
    assert names(collect(0.1, grace_s=1.0).removed) == [EVALUATION]


@pytest.mark.parametrize("end", ["running", "left", "failed"])
def test_evaluation_of_which_a_run_may_be_resumed_stays(
    book: BatchBook, collect: Collect, evaluations: Path, end: str
) -> None:
    folder = evaluations / EVALUATION
    finish(book, start(book, folder / "run-0", 0))
    lease = start(book, folder / "run-1", 1)
    if end == "failed":
        book.fail(lease, "why", 1.0)
    elif end == "left":
        book.release(lease, 1.0)
    assert collect(1000) == CollectedFolders()
    book.cancel(lease.run_id)
    assert names(collect(1000).removed) == [EVALUATION]


def test_evaluation_reached_by_another_name_is_known_by_its_runs_mark(
    book: BatchBook, collect: Collect, evaluations: Path, tmp_path: Path
) -> None:
    """The data directory was reached by another name."""
    evaluations.mkdir(parents=True)
    (tmp_path / "link").symlink_to(evaluations)
    start(book, tmp_path / "link" / EVALUATION / "run-0")
    assert collect(1000) == CollectedFolders()


def test_rows_that_a_run_may_read_again_stay(
    book: BatchBook, collect: Collect, evaluations: Path, tmp_path: Path
) -> None:
    rows = evaluations / EVALUATION / "rows-0.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_bytes(b"rows")
    start(book, tmp_path / "answers", source=str(rows))
    assert collect(1000) == CollectedFolders()


def test_what_is_no_evaluation_of_this_registry_stays(
    collect: Collect, evaluations: Path, tmp_path: Path
) -> None:
    other = evaluations / EVALUATION / "run-0"
    other.mkdir(parents=True)
    (other / RUN_MARK).write_text("5" * 32)  # a run of another database
    (evaluations / "mine").mkdir()
    (tmp_path / "precious").mkdir()
    (evaluations / ("f" * 32)).symlink_to(tmp_path / "precious")
    assert collect(1000) == CollectedFolders()
    assert len(list(evaluations.iterdir())) == 3


def test_without_evaluations_there_is_nothing(collect: Collect) -> None:
    assert collect(1000) == CollectedFolders()
