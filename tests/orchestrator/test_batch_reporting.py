"""A report is of the output that the ledger means: parts, or the one file made of them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.join_parts import join_parts, remove_parts
from orchestrator.batch_data.manifest import describe_run, write_manifest
from orchestrator.batch_data.output_row import OutputRow
from orchestrator.batch_data.output_target import OutputTarget, open_target
from orchestrator.batch_data.part_file import PartFile, write_part
from orchestrator.batch_reporting import report_run
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.batch_run import RunLease, ShardDone, TaskCount
from orchestrator.domain.errors import IntegrityError, UnknownName
from orchestrator.domain.paired_hits import Share
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.database import Database
from tests.orchestrator.registry.batch_plans import make_plan

RUN, OTHER = "1" * 32, "2" * 32
SIZES = (3, 3, 2)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[BatchBook]:
    database = Database.open(f"sqlite:///{tmp_path / 'tutti.db'}")
    yield BatchBook(database)
    database.close()


class Work:
    """A run that is answered a shard at a time, as workers and driver do it."""

    def __init__(self, book: BatchBook, output: Path, run_id: str = RUN) -> None:
        self.book, self.run_id = book, run_id
        self.target = OutputTarget.parse(output)
        self.folder = open_target(self.target, run_id)
        files = [{"url": "in.jsonl", "sha256": "a" * 64}]
        plan = make_plan(SIZES, output=self.target.url, format=self.target.format)
        plan = replace(plan, input={"source": "in.jsonl", "files": files, "shards": []})
        self.lease: RunLease = book.create(run_id, plan, "in.jsonl", "ann", "host:1:1", 60)
        self.parts: list[PartFile] = []

    def answer(self, num_shards: int) -> None:
        for claim in self.book.claim(self.lease, num_shards):
            first = 3 * claim.number + 1
            rows = [self._row(first + place) for place in range(SIZES[claim.number])]
            part = write_part(self.folder, claim.number, rows, self.target.format)
            self.parts.append(part)
            counts = {"colour@1": TaskCount(len(rows), 0, 0, 40)}
            done = ShardDone(
                claim.number,
                claim.epoch,
                part.name,
                part.sha256,
                part.num_bytes,
                part.num_rows,
                part.num_errors,
                0.5,
                counts,
            )
            self.book.commit(self.lease, [done])

    def _row(self, row: int) -> OutputRow:
        answer = "red" if row % 2 else "blue"
        return OutputRow(
            row, line=row, task="colour", version=1, answer=answer, score=0.75, expected="red"
        )

    def finish(self) -> None:
        source = Input("in.jsonl", 3, (), ())
        joined = join_parts(self.folder, self.parts, self.target)
        manifest = describe_run(
            self.run_id, source, BatchSettings(), [], {}, self.target, [joined], 2.0
        )
        write_manifest(self.target, manifest)
        self.book.finish(self.lease, 2.0)
        remove_parts(self.folder, self.parts, self.target)


@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.parquet"])
def test_finished_shards_are_reported_while_a_run_goes_on(
    book: BatchBook, tmp_path: Path, name: str
) -> None:
    work = Work(book, tmp_path / name)
    assert report_run(book, RUN).num_rows == 0
    work.answer(2)
    report = report_run(book, RUN[:8])
    assert (report.num_rows, report.facts.num_rows, report.facts.num_shards) == (6, 8, 3)
    assert report.versions[0].hits == Share(3, 6)
    assert report.seconds_per_row(0.5) == pytest.approx(0.5 / 3)
    assert report.facts.versions[0].ref == "colour@1"
    assert report.facts.inputs == {"in.jsonl": "a" * 64}


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_finished_run_is_reported_from_its_one_file(
    book: BatchBook, tmp_path: Path, name: str
) -> None:
    work = Work(book, tmp_path / name)
    work.answer(3)
    before = report_run(book, RUN)
    work.finish()
    after = report_run(book, RUN)
    assert after.versions == before.versions
    assert (after.num_rows, after.facts.state, after.facts.seconds) == (8, "succeeded", 2.0)
    assert after.rows_per_s == 4.0
    assert after.positions_per_s == 60.0


def test_output_that_was_altered_or_replaced_or_lost_is_refused(
    book: BatchBook, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    work = Work(book, output)
    work.answer(3)
    work.finish()
    content = output.read_text()
    output.write_text(content.replace("blue", "red "))
    with pytest.raises(IntegrityError, match="its sha256 is"):
        report_run(book, RUN)
    output.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        report_run(book, RUN)
    again = Work(book, output, OTHER)
    again.answer(3)
    again.finish()
    with pytest.raises(IntegrityError, match="output of batch run 222222222222 now"):
        report_run(book, RUN)
    manifest = tmp_path / "out.jsonl.manifest.json"
    for text in ("", "[]", json.dumps({"run": OTHER, "output": {"files": []}})):
        manifest.write_text(text)
        with pytest.raises(IntegrityError, match="not a batch run's manifest"):
            report_run(book, OTHER)
    manifest.unlink()
    with pytest.raises(IntegrityError, match="no such file"):
        report_run(book, OTHER)


def test_a_part_that_was_altered_is_named(book: BatchBook, tmp_path: Path) -> None:
    Work(book, tmp_path / "out").answer(2)
    part = tmp_path / "out" / "part-00001.jsonl"
    part.write_text(part.read_text().replace("red", "rot"))
    with pytest.raises(IntegrityError, match=r"part-00001\.jsonl: its sha256 is"):
        report_run(book, RUN)


def test_an_unknown_run_is_no_run(book: BatchBook) -> None:
    with pytest.raises(UnknownName, match="there is no batch run"):
        report_run(book, RUN)
