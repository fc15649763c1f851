"""Batch runs whose workers hold the base together (Ray, DeepSpeed's ZeRO-3): one of them is killed,
then the driver. The output stays that of an undisturbed run, whose answers are whole workers'.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.batch.progress import Progress
from orchestrator.batch.ray_pool import RayPool
from orchestrator.batch.run import Watch
from orchestrator.batch.start import run_batch
from tests.acceptance.batch_world import World
from tests.acceptance.conftest import TIMEOUT_S, Home
from tests.orchestrator.batch.conftest import Files, InlinePool, fill, write_rows
from tests.tiny import make_tiny_base

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(600)]
NUM_ROWS, SHARD_ROWS = 480, 16


class Up:
    """Workers of a pool that is up already."""

    def __init__(self, pool: RayPool) -> None:
        self.answer = pool.answer

    def up(self) -> AbstractContextManager[Any]:
        return nullcontext()


def ranks(home: Path) -> list[int]:
    """The processes of workers that hold a base together under this home."""
    mark = f"TUTTI_HOME={home}".encode()
    pids = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            is_rank = b"SplitWorker" in (proc / "cmdline").read_bytes()
            if is_rank and mark in (proc / "environ").read_bytes().split(b"\0"):
                pids.append(int(proc.name))
        except OSError:
            continue
    return sorted(pids)


def check_alike(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same answers; what is counted in floats differs by rounding at most."""
    for row, other in zip(rows, expected, strict=True):
        assert {**row, "score": 0, "scores": 0} == {**other, "score": 0, "scores": 0}
        assert row.get("score") == pytest.approx(other.get("score"), abs=1e-5)
        assert row.get("scores") == pytest.approx(other.get("scores"), abs=1e-5)


def kill_one(home: Path, at_rows: int) -> Callable[[Progress], None]:
    """Hears of progress, and kills one of the ranks once so many rows are answered."""
    killed: list[int] = []

    def hear(progress: Progress) -> None:
        if progress.num_rows >= at_rows and not killed:
            killed.append(ranks(home)[0])
            os.kill(killed[0], signal.SIGKILL)

    return hear


@dataclass
class Told:
    """What an undisturbed run told, and one that a worker was killed in."""

    calm: list[str]
    killed: list[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("split")
    settings = {"TUTTI_WORKER_THREADS": "1", "TUTTI_ZERO_STAGE": "3"}
    home = Home(root / "home", root, settings)
    source = write_rows(root / "in.jsonl", NUM_ROWS)
    return World(home, Files(source, root), NUM_ROWS, SHARD_ROWS)


@pytest.fixture(scope="module")
def told(world: World) -> Iterator[Told]:
    """Both runs, on one Ray cluster, and one by a worker in this process that holds all."""
    told, home = Told([], []), world.home.folder
    parts = world.parts()
    fill(parts, make_tiny_base(world.files.folder / "base"))
    run_batch(parts, world.files.request("whole.jsonl", SHARD_ROWS), None, InlinePool())
    pool = RayPool(parts, told.killed.append)
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("TUTTI_HOME", str(home))  # by which the ranks are found
        with pool.up():
            calm = world.files.request("calm.jsonl", SHARD_ROWS)
            run_batch(parts, calm, Watch(note=told.calm.append), Up(pool))
            watch = Watch(kill_one(home, NUM_ROWS // 4), told.killed.append)
            run_batch(parts, world.files.request("killed.jsonl", SHARD_ROWS), watch, Up(pool))
    parts.close()
    world.calm = b"".join(world.files.output("calm.jsonl").values())
    yield told
    assert not ranks(home)


def test_workers_that_hold_a_base_together_answer_as_whole_ones(world: World, told: Told) -> None:
    check_alike(world.files.rows("calm.jsonl"), world.files.rows("whole.jsonl"))
    assert told.calm == ["tiny: split over the workers (stage 3, as asked for)"]


def test_a_killed_worker_costs_no_answer_and_changes_none(world: World, told: Told) -> None:
    world.check("killed.jsonl")
    first, second = told.killed
    assert first == told.calm[0]
    assert re.match(r"worker [01] of 2 died; its group starts again, and \d shards", second)
    found = world.ledger("killed.jsonl")
    assert found is not None
    assert set(found[1].values()) == {1}  # no shard was claimed twice


@pytest.mark.usefixtures("told")
def test_a_killed_driver_s_run_is_resumed_to_the_same_bytes(world: World) -> None:
    process = world.run("driver.jsonl")
    run, _ = world.reach("driver.jsonl", 4)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    before = shards_done(world, run.id)
    assert 4 <= len(before) < NUM_ROWS // SHARD_ROWS
    again = world.start("resume", run.id)
    _, said = again.communicate(timeout=TIMEOUT_S)
    assert again.returncode == 0, said
    assert "split over the workers (stage 3, as asked for)" in said
    world.check("driver.jsonl")
    after = shards_done(world, run.id)
    assert {number: after[number] for number in before} == before


def shards_done(world: World, run_id: str) -> dict[int, str]:
    """What the ledger says of each shard that is done: its epoch, digest, and the time it took."""
    parts = world.parts()
    try:
        shards = [each for each in parts.batches.shards(run_id) if each.sha256]
        return {each.number: json.dumps([each.epoch, each.sha256, each.seconds]) for each in shards}
    finally:
        parts.close()
