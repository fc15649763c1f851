import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.inference.chunk import scan
from orchestrator.inference.chunk_worker import BatchPlan, ChunkWorker, ServedBase
from tests.orchestrator.inference.conftest import MAX_LENGTH, Base, MakeVersion

Run = Callable[..., tuple[list[dict[str, Any]], int]]

BAD_LINES: tuple[tuple[bytes, str], ...] = (
    (b"", "not JSON"),
    (b"no json", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'{"task": "colour"}', "the key 'fields' is missing"),
    (b'{"task": "colour", "fields": {}}', "colour@1: the row lacks the field 'word'"),
    (b'{"task": "colour", "fields": {"word": null}}', "lacks the field 'word'"),
    (b'{"task": "colour", "fields": {"word": "%s"}}' % (b"a" * 300), "colour@1: the row has 310"),
    (b'{"task": "colour", "fields": {"word": "\\ud800"}}', "half a surrogate pair"),
    (b'{"task": "colour", "fields": {"word": "a"}, "id": "\\ud800"}', "half a surrogate pair"),
    (b'{"task": "nothing", "fields": {}}', "there is no task 'nothing'"),
    (b'{"task": "../x", "fields": {}}', "is not a prompt reference"),
)


@pytest.fixture(scope="module")
def versions(make_version: MakeVersion, bases: tuple[Base, Base]) -> dict[str, PromptVersion]:
    return {
        "colour@production": make_version("colour"),
        "prefix@production": make_version("prefix", template="{prompt:4}{word} {colour}"),
        "colour@2": make_version("colour", number=2, candidates=("one", "two")),
        "other@production": make_version("other", base=bases[1], candidates=None),
    }


@pytest.fixture
def run(
    tmp_path: Path,
    store: ArtifactStore,
    bases: tuple[Base, Base],
    versions: dict[str, PromptVersion],
) -> Run:
    """Answer lines through a worker, chunk by chunk; gives the decoded output lines."""

    def run_lines(lines: list[bytes], num_workers: int = 1) -> tuple[list[dict[str, Any]], int]:
        path = tmp_path / "requests.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n")
        source = scan(path)
        plan = BatchPlan(
            input=source.path,
            artifact_url=store.url,
            default_alias="production",
            versions=versions,
            unresolved={"nothing@production": "there is no task 'nothing'"},
            bases={base.fingerprint: ServedBase(base.folder, MAX_LENGTH) for base in bases},
            num_threads=1,
        )
        worker = ChunkWorker(plan)
        answered = [worker.answer(chunk) for chunk in source.chunks(num_workers)]
        outputs = [line for lines, _ in answered for line in lines]
        assert all("\n" not in line for line in outputs)
        return [json.loads(line.encode()) for line in outputs], sum(n for _, n in answered)

    return run_lines


def request(task: str, word: str, **more: object) -> bytes:
    return json.dumps({"task": task, "fields": {"word": word}, **more}).encode()


MIXED = [
    request("colour", "a1", id="first"),
    request("other", "b2"),
    request("prefix", "a1", id=7),
    request("colour", "a1", version=2),
    request("other", "a1"),
    request("colour", "zz"),
]


def test_each_line_has_its_answer_in_order(run: Run, versions: dict[str, PromptVersion]) -> None:
    outputs, num_errors = run(MIXED)
    assert num_errors == 0
    assert [each["line"] for each in outputs] == [1, 2, 3, 4, 5, 6]
    tasks = ["colour", "other", "prefix", "colour", "other", "colour"]
    assert [each["task"] for each in outputs] == tasks
    assert [each["version"] for each in outputs] == [1, 1, 1, 2, 1, 1]
    assert [each.get("id") for each in outputs] == ["first", None, 7, None, None, None]
    assert "id" not in outputs[1]
    assert outputs[3]["digest"] == versions["colour@2"].digest
    assert {outputs[0]["answer"], outputs[5]["answer"]} <= {"red", "blue"}
    assert outputs[3]["answer"] in ("one", "two")
    assert all(0 <= each["score"] <= 1 for each in outputs)


def test_mixed_lines_are_answered_as_each_alone(run: Run) -> None:
    together, _ = run(MIXED)
    for line, expected in zip(MIXED, together, strict=True):
        (alone,), _ = run([line])
        assert alone["answer"] == expected["answer"]
        assert alone["score"] == pytest.approx(expected["score"], abs=1e-4)


def test_the_cut_into_chunks_does_not_matter(run: Run) -> None:
    whole, _ = run(MIXED, num_workers=1)
    cut, _ = run(MIXED, num_workers=6)
    assert [each["answer"] for each in cut] == [each["answer"] for each in whole]
    assert [each["line"] for each in cut] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_holds_its_error_and_nothing_else_is_lost(
    run: Run, line: bytes, message: str
) -> None:
    good = request("colour", "a1")
    outputs, num_errors = run([good, line, good])
    assert num_errors == 1
    assert message in outputs[1]["error"]
    assert not {"answer", "score"} & set(outputs[1])
    assert outputs[0]["answer"] == outputs[2]["answer"]


def test_an_error_names_its_line_in_whichever_chunk_it_stands(run: Run) -> None:
    outputs, _ = run([request("colour", "a1")] * 5 + [b"no json"], num_workers=3)
    assert outputs[5]["line"] == 6
    assert outputs[5]["error"].startswith("line 6: not JSON")


def test_bad_lines_alone_need_no_base(run: Run) -> None:
    outputs, num_errors = run([line for line, _ in BAD_LINES if b"colour" not in line])
    assert num_errors == len(outputs)


def test_an_error_names_what_is_known_of_its_request(run: Run) -> None:
    lines = [
        b'{"task": "colour", "fields": {}, "id": "x"}',
        b'{"task": "nothing", "fields": {}, "id": 3}',
    ]
    outputs, _ = run(lines)
    assert outputs[0].keys() == {"line", "id", "task", "version", "digest", "error"}
    assert outputs[1].keys() == {"line", "id", "task", "error"}


def test_windows_line_endings_do_not_matter(run: Run) -> None:
    (plain,), _ = run([request("colour", "a1")])
    (windows,), _ = run([request("colour", "a1") + b"\r"])
    assert windows == plain


def test_a_worker_loads_each_base_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = ChunkWorker._load

    def count(self: ChunkWorker, fingerprint: str) -> Any:
        loaded.append(fingerprint)
        return load(self, fingerprint)

    monkeypatch.setattr(ChunkWorker, "_load", count)
    run(MIXED, num_workers=6)
    assert sorted(loaded) == ["a" * 64, "b" * 64]
