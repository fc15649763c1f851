"""A batch run without Ray: what it gives, what it says, and what resuming does."""

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.batch.progress import Progress
from orchestrator.batch.run import Watch
from orchestrator.batch.start import resume_batch, run_batch
from orchestrator.bootstrap import Parts
from orchestrator.domain.batch import BatchMode
from orchestrator.domain.batch_run import BatchState, ShardClaim, ShardDone
from orchestrator.domain.errors import InvalidData, InvalidInput, StaleLease, TuttiError
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.inference.shard_worker import WorkerPlan
from orchestrator.registry.errors import DatabaseUnavailable
from tests.orchestrator.batch.conftest import (
    Files,
    InlinePool,
    open_parts,
    register,
    rows_of,
    write_rows,
)


def fail_at(*numbers: int) -> InlinePool:
    def before(number: int) -> None:
        if number in numbers:
            raise TuttiError("the disk is full")

    return InlinePool(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, home_template: Path) -> dict[str, bytes]:
    """The one file, as a run that nothing happened to gives it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    parts = open_parts(Path(shutil.copytree(home_template, folder / "home")))
    files = Files(write_rows(folder / "in.jsonl", 23), folder)
    run_batch(parts, files.request("whole.jsonl"), None, InlinePool())
    parts.close()
    return files.output("whole.jsonl")


def epochs(parts: Parts, run_id: str) -> list[int]:
    return [shard.epoch for shard in parts.batches.shards(run_id)]


def test_one_row_out_for_each_row_in_with_versions_and_errors(parts: Parts, files: Files) -> None:
    told: list[Progress] = []
    result = run_batch(parts, files.request(), Watch(told.append), InlinePool())
    rows = files.rows()
    assert [row["row"] for row in rows] == list(range(1, 24))
    assert [row["id"] for row in rows] == list(range(23))
    for row, given in zip(rows, rows_of(23), strict=True):
        assert row["task"] == given["task"]
        assert ("error" in row) == (given["task"] == "nobody")
        assert row.get("expected") == (None if given["task"] == "nobody" else "red")
    assert rows[1]["answer"] in ("good", "bad", "odd")
    assert set(rows[1]["scores"]) == {"good", "bad", "odd"}
    assert rows[1]["version"] == 1
    assert rows[1]["digest"] == parts.prompts.resolve(PromptRef("mood", 1)).digest
    assert 1 <= rows[3]["tokens"] <= 5
    assert (result.num_rows, result.num_errors, result.run.state) == (23, 4, BatchState.SUCCEEDED)
    assert [version.ref for version in result.versions] == ["colour@1", "mood@1", "spelled@1"]
    assert result.counts["colour@1"].rows == 10
    assert result.counts["nobody"].errors == 4
    assert (told[-1].num_rows, told[-1].num_errors, told[-1].num_tasks) == (23, 4, 4)
    assert result.run.num_shards == 6


def test_the_manifest_tells_what_was_read_used_and_written(parts: Parts, files: Files) -> None:
    result = run_batch(parts, files.request(), None, InlinePool())
    manifest = json.loads(Path(result.manifest).read_text())
    assert manifest["run"] == result.id
    assert manifest["rows"] == 23
    assert manifest["errors"] == 4
    assert manifest["versions"]["colour@1"]["digest"] == result.versions[0].digest
    assert manifest["references"]["colour@production"] == "colour@1"
    assert "there is no task 'nobody'" in manifest["unresolved"]["nobody@production"]
    assert manifest["counts"]["mood@1"]["rows"] == 5
    assert not list(files.folder.glob(".*parts*"))


def test_a_folder_holds_the_parts_whose_bytes_make_the_one_file(
    parts: Parts, files: Files, undisturbed: dict[str, bytes]
) -> None:
    run_batch(parts, files.request("out"), None, InlinePool())
    found = files.output("out")
    assert list(found) == [f"part-{n:05d}.jsonl" for n in range(6)]
    assert b"".join(found.values()) == undisturbed["whole.jsonl"]
    assert (files.folder / "out" / "_manifest.json").is_file()


@pytest.mark.parametrize("output", ["answers.jsonl", "out"])
def test_a_resumed_run_gives_the_same_bytes_and_answers_no_shard_twice(
    parts: Parts, files: Files, undisturbed: dict[str, bytes], output: str
) -> None:
    first = fail_at(3)
    with pytest.raises(TuttiError, match="the disk is full"):
        run_batch(parts, files.request(output), None, first)
    (run,) = parts.batches.list()
    assert (run.state, run.error, run.num_shards_done) == ("failed", "the disk is full", 3)
    again = InlinePool()
    result = resume_batch(parts, run.id[:8], None, again)
    assert first.answered == [0, 1, 2]
    assert again.answered == [3, 4, 5]
    assert epochs(parts, run.id) == [1, 1, 1, 2, 2, 2]
    assert b"".join(files.output(output).values()) == undisturbed["whole.jsonl"]
    assert (result.num_rows, result.num_errors) == (23, 4)


def test_a_run_that_succeeded_is_resumed_to_nothing(parts: Parts, files: Files) -> None:
    done = run_batch(parts, files.request(), None, InlinePool())
    before = files.output()
    pool = InlinePool()
    assert resume_batch(parts, done.id, None, pool).run == done.run
    assert pool.answered == []
    assert files.output() == before


def test_a_promotion_in_the_middle_changes_nothing(
    parts: Parts, files: Files, undisturbed: dict[str, bytes]
) -> None:
    with pytest.raises(TuttiError):
        run_batch(parts, files.request(), None, fail_at(2))
    register(parts, "colour", ("green", "grey"), 77)
    register(parts, "nobody", ("x", "y"), 78)
    for ref in (PromptRef("colour", 2), PromptRef("nobody", 1)):
        parts.prompts.promote(ref, "production", "ann")
    (run,) = parts.batches.list()
    resume_batch(parts, run.id, None, InlinePool())
    assert files.output()["answers.jsonl"] == undisturbed["whole.jsonl"]
    assert {row.get("version") for row in files.rows()} == {1, None}


@pytest.mark.parametrize("harm", ["gone", "altered", "cut"])
def test_a_part_that_is_lost_is_answered_again(
    parts: Parts, files: Files, undisturbed: dict[str, bytes], harm: str
) -> None:
    with pytest.raises(TuttiError):
        run_batch(parts, files.request("out"), None, fail_at(4))
    part = files.folder / "out" / "part-00001.jsonl"
    whole = part.read_bytes()
    if harm == "gone":
        part.unlink()
    else:
        part.write_bytes(whole.replace(b"w", b"v") if harm == "altered" else whole[:-9])
    (run,) = parts.batches.list()
    said: list[str] = []
    pool = InlinePool()
    resume_batch(parts, run.id, Watch(note=said.append), pool)
    assert pool.answered == [1, 4, 5]
    assert said == ["part-00001.jsonl: missing or altered, to be answered again"]
    assert epochs(parts, run.id) == [1, 2, 1, 1, 2, 2]
    assert b"".join(files.output("out").values()) == undisturbed["whole.jsonl"]


def test_a_part_that_was_written_but_not_committed_does_not_count(
    parts: Parts, files: Files, undisturbed: dict[str, bytes]
) -> None:
    with pytest.raises(TuttiError):
        run_batch(parts, files.request("out"), None, fail_at(2))
    (files.folder / "out" / "part-00002.jsonl").write_bytes(b'{"row": 9}\n' * 4)
    (run,) = parts.batches.list()
    resume_batch(parts, run.id, None, InlinePool())
    assert b"".join(files.output("out").values()) == undisturbed["whole.jsonl"]


def test_a_changed_input_is_refused_and_the_old_one_goes_on(parts: Parts, files: Files) -> None:
    with pytest.raises(TuttiError):
        run_batch(parts, files.request(), None, fail_at(2))
    (run,) = parts.batches.list()
    whole = files.source.read_bytes()
    files.source.write_bytes(whole.replace(b"w3", b"w4"))
    with pytest.raises(InvalidData, match=r"in\.jsonl: has changed since the run started"):
        resume_batch(parts, run.id, None, InlinePool())
    assert parts.batches.get(run.id).state == BatchState.FAILED
    files.source.write_bytes(whole)
    assert resume_batch(parts, run.id, None, InlinePool()).num_rows == 23


def test_an_input_that_changes_in_the_middle_fails_the_run(parts: Parts, files: Files) -> None:
    def change(number: int) -> None:
        if number == 3:
            files.source.write_bytes(files.source.read_bytes().replace(b"w13", b"w99"))

    with pytest.raises(InvalidData, match=r"in\.jsonl"):
        run_batch(parts, files.request(), None, InlinePool(change))
    (run,) = parts.batches.list()
    assert (run.state, run.num_shards_done) == (BatchState.FAILED, 3)
    assert not files.folder.joinpath("answers.jsonl").exists()


def test_who_stops_a_run_is_told_how_to_go_on(parts: Parts, files: Files) -> None:
    stop = threading.Event()
    pool = InlinePool(lambda number: stop.set() if number == 1 else None)
    with pytest.raises(TuttiError, match=r"interrupted; . of 6 shards .*\n.*tutti batch resume"):
        run_batch(parts, files.request(), Watch(stop=stop), pool)
    (run,) = parts.batches.list()
    assert (run.state, run.holder) == (BatchState.RUNNING, None)
    assert resume_batch(parts, run.id, None, InlinePool()).num_rows == 23


def test_a_cancelled_run_stops_and_writes_no_output(parts: Parts, files: Files) -> None:
    def cancel(number: int) -> None:
        if number == 2:
            other = open_parts(parts.settings.home)
            other.batches.cancel(other.batches.list()[0].id)
            other.close()

    with pytest.raises(StaleLease, match="is cancelled"):
        run_batch(parts, files.request(), None, InlinePool(cancel))
    (run,) = parts.batches.list()
    assert run.state == BatchState.CANCELLED
    assert not files.folder.joinpath("answers.jsonl").exists()
    with pytest.raises(InvalidInput, match="is cancelled"):
        resume_batch(parts, run.id, None, InlinePool())


def test_of_two_that_resume_one_is_told_who_works_on_it(parts: Parts, files: Files) -> None:
    """In the middle of the first one's work, the other tries."""
    refusals: list[str] = []

    def resume_too(number: int) -> None:
        if number == 4:
            other = open_parts(parts.settings.home)
            with pytest.raises(InvalidInput) as refused:
                resume_batch(other, other.batches.list()[0].id, None, InlinePool())
            refusals.append(refused.value.message)
            other.close()

    with pytest.raises(TuttiError):
        run_batch(parts, files.request(), None, fail_at(2))
    (run,) = parts.batches.list()
    resume_batch(parts, run.id, None, InlinePool(resume_too))
    assert len(refusals) == 1
    assert "is being answered by" in refusals[0]
    assert epochs(parts, run.id) == [1, 1, 2, 2, 2, 2]


def test_one_prompt_answers_all_rows_of_a_table(parts: Parts, files: Files) -> None:
    table = files.folder / "in.csv"
    table.write_text("Wort,colour\nab,red\ncd,blue\n")
    request = Files(table, files.folder).request(
        prompt=PromptRef("colour", "production"), columns={"word": "Wort"}
    )
    run_batch(parts, request, None, InlinePool())
    rows = files.rows()
    assert [(row["task"], row["expected"]) for row in rows] == [
        ("colour", "red"),
        ("colour", "blue"),
    ]


def test_an_unknown_prompt_for_all_rows_is_refused(parts: Parts, files: Files) -> None:
    for prompt in (PromptRef("nobody", "production"), PromptRef("colour", 9)):
        with pytest.raises(InvalidInput, match="there is no|has no"):
            run_batch(parts, files.request(prompt=prompt), None, InlinePool())
    assert parts.batches.list() == []
    assert {path.name for path in files.folder.iterdir()} == {"home", "in.jsonl"}


def test_an_output_of_a_run_that_has_not_ended_is_refused(parts: Parts, files: Files) -> None:
    with pytest.raises(TuttiError):
        run_batch(parts, files.request(), None, fail_at(2))
    with pytest.raises(InvalidInput, match="which has not ended, writes there"):
        run_batch(parts, files.request(), None, InlinePool())
    parts.batches.cancel(parts.batches.list()[0].id)
    run_batch(parts, files.request(), None, InlinePool())


def test_rows_that_name_ever_new_prompts_are_refused(
    parts: Parts, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.batch.request.MAX_REFERENCES", 3)
    with pytest.raises(InvalidData, match="more than 3 different prompts"):
        run_batch(parts, files.request(), None, InlinePool())


def test_a_database_that_is_away_for_a_while_loses_nothing(
    parts: Parts, files: Files, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    write, left = parts.database.write, [0]

    def unsteady() -> Any:
        if left[0]:
            left[0] -= 1
            raise DatabaseUnavailable("the database cannot be used")
        return write()

    monkeypatch.setattr(parts.database, "write", unsteady)
    said: list[str] = []
    pool = InlinePool(lambda number: left.__setitem__(0, 3 if number == 2 else left[0]))
    run_batch(parts, files.request(), Watch(note=said.append), pool)
    assert files.output()["answers.jsonl"] == undisturbed["whole.jsonl"]
    assert set(said) <= {"not committed yet: the database cannot be used"}
    assert left == [0]


def test_a_shard_without_an_answer_fails_the_run(parts: Parts, files: Files) -> None:
    class Forgetful(InlinePool):
        def answer(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
            return super().answer(plan, claims[:-2])

    with pytest.raises(TuttiError, match="2 shards came back without an answer"):
        run_batch(parts, files.request(), None, Forgetful())
    assert parts.batches.list()[0].state == BatchState.FAILED


def test_parquet_in_and_out_holds_the_same_rows(parts: Parts, files: Files) -> None:
    table = pa.table(
        {"task": ["colour", "mood", "nobody"], "word": ["w0", "w1", "w2"], "id": [7, 8, 9]}
    )
    pq.write_table(table, files.folder / "in.parquet")
    given = Files(files.folder / "in.parquet", files.folder)
    run_batch(parts, given.request("same.jsonl"), None, InlinePool())
    result = run_batch(parts, given.request("answers.parquet"), None, InlinePool())
    rows = pq.read_table(files.folder / "answers.parquet").to_pylist()
    assert [row["row"] for row in rows] == [1, 2, 3]
    for row, same in zip(rows, given.rows("same.jsonl"), strict=True):
        assert row["answer"] == same.get("answer")
        assert row["score"] == same.get("score")
        assert dict(row["scores"] or {}) == same.get("scores", {})
        assert row["error"] == same.get("error")
    assert (result.num_rows, result.num_errors) == (3, 1)


def test_hidden_states_of_all_rows_are_embedded(parts: Parts, files: Files) -> None:
    run_batch(parts, files.request("out", mode=BatchMode.EMBED), None, InlinePool())
    lengths = {len(row.get("embedding", ())) for row in files.rows("out") if "error" not in row}
    assert lengths == {64}
