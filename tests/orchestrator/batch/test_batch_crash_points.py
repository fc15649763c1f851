"""A process that answers a run is killed (SIGKILL) before each call that changes the disk or the
database: each new folder, flush, link, rename and removal of a file, and each commit. Who resumes
the run after it ends with the bytes of an undisturbed one, and answers no committed shard again.

Driver and worker are one process here, without Ray, so that one walk meets all their instants.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.engine.default import DefaultDialect

from orchestrator.batch.start import resume_batch, run_batch
from orchestrator.bootstrap import Parts
from orchestrator.domain.batch_run import BatchState, ShardState
from orchestrator.domain.errors import InvalidInput
from orchestrator.inference.predictor import Predictor
from orchestrator.registry import migrate
from tests.kill_points import where_killed
from tests.orchestrator.batch.conftest import Files, InlinePool, fill, open_parts, write_rows
from tests.postgres_server import postgres_server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
CALLS = (
    (os, "mkdir"),
    (os, "fsync"),
    (os, "link"),
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
    (DefaultDialect, "do_commit"),
)
NUM_ROWS = 8  # in shards of 4


@pytest.fixture(scope="module")
def settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base_folder: Path
) -> Iterator[dict[str, str]]:
    """Settings of a home with the base and the prompts, on either database."""
    home = str(tmp_path_factory.mktemp("home"))
    if request.param == "sqlite":
        given = {"home": home}
        _fill(given, base_folder)
        yield given
        return
    with postgres_server() as uri:
        server = make_url(uri).set(drivername="postgresql+psycopg")
        url = server.render_as_string(hide_password=False)
        migrate.upgrade(url)
        given = {"home": home, "TUTTI_DATABASE_URL": url}
        _fill(given, base_folder)
        yield given


def _fill(settings: dict[str, str], base_folder: Path) -> None:
    parts = opened(settings)
    fill(parts, base_folder)
    parts.close()


def opened(settings: dict[str, str]) -> Parts:
    """Anew each time: no connection crosses a fork."""
    rest = {name: value for name, value in settings.items() if name != "home"}
    return open_parts(Path(settings["home"]), **rest)


@pytest.mark.parametrize(
    ("settings", "output"),
    [
        ("sqlite", "answers.jsonl"),
        ("sqlite", "out"),
        pytest.param("postgres", "answers.jsonl", marks=pytest.mark.postgres),
    ],
    indirect=["settings"],
)
def test_killed_at_any_instant_the_run_is_resumed_to_the_same_bytes(
    settings: dict[str, str], tmp_path: Path, output: str
) -> None:
    loaded: dict[str, Predictor] = {}
    files = Files(write_rows(tmp_path / "in.jsonl", NUM_ROWS), tmp_path)

    def run(name: str) -> None:
        parts = opened(settings)
        run_batch(parts, files.request(name), None, InlinePool(loaded=loaded))
        parts.close()

    run(f"calm-{output}")
    calm = b"".join(files.output(f"calm-{output}").values())
    met: Counter[str] = Counter()
    states: Counter[tuple[str, int]] = Counter()
    for number in itertools.count():
        name = f"{number}-{output}"
        where = where_killed(lambda name=name: run(name), CALLS, number)  # type: ignore[misc]
        if where is None:
            break
        met[where] += 1
        state = _go_on(settings, files, name, loaded)
        states[state] += 1
        assert b"".join(files.output(name).values()) == calm, (number, where)
        assert not list(tmp_path.glob(f".{name}.parts*")), (number, where)
    assert {"before fsync", "before do_commit", "before mkdir"} < set(met)
    assert {("none", 0), ("running", 0), ("running", 1), ("running", 2)} <= set(states)


def _go_on(
    settings: dict[str, str], files: Files, name: str, loaded: dict[str, Predictor]
) -> tuple[str, int]:
    """Resume the run into `name`, or start it where there is none; the state it was found in, and
    how many of its shards were done."""
    parts = opened(settings)
    try:
        output = str(files.folder / name)
        found = [run for run in parts.batches.list() if run.output == output]
        pool = InlinePool(loaded=loaded)
        if not found:
            run_batch(parts, files.request(name), None, pool)
            return "none", 0
        (run,) = found
        before = parts.batches.shards(run.id)
        result = resume_batch(parts, run.id, None, pool)
        done = {shard.number for shard in before if shard.state == ShardState.DONE}
        assert not done & set(pool.answered)
        after = {shard.number: shard.epoch for shard in parts.batches.shards(run.id)}
        assert all(after[shard.number] == shard.epoch for shard in before if shard.number in done)
        assert result.run.state == BatchState.SUCCEEDED
        assert (result.num_rows, result.run.num_answered) == (NUM_ROWS, NUM_ROWS)
        with pytest.raises(InvalidInput, match="has succeeded"):
            parts.batches.cancel(run.id)
        return str(run.state), len(done)
    finally:
        parts.close()
