"""Kills the processes of real batch runs (Ray Data, SQLite and PostgreSQL), and looks at a long
one's memory. Whatever happens, the output is that of a worker in this process, undisturbed.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.batch.start import resume_batch, run_batch
from orchestrator.domain.prompt_version import PromptRef
from tests.acceptance.batch_world import World
from tests.acceptance.conftest import TIMEOUT_S, Home
from tests.orchestrator.batch.conftest import (
    Files,
    InlinePool,
    fill,
    register,
    write_rows,
)
from tests.postgres_server import postgres_server
from tests.tiny import make_tiny_base

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(600)]
NUM_ROWS, SHARD_ROWS = 3000, 50
MB = 1 << 20


def ray_workers(home: Home) -> list[int]:
    """The processes of Ray Data's actors under this home."""
    mark = f"TUTTI_HOME={home.folder}".encode()
    pids = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            is_actor = b"MapWorker" in (proc / "cmdline").read_bytes()
            if is_actor and mark in (proc / "environ").read_bytes().split(b"\0"):
                pids.append(int(proc.name))
        except OSError:
            continue
    return pids


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    root = tmp_path_factory.mktemp(f"batch-{request.param}")
    base = make_tiny_base(root / "base")
    if request.param == "sqlite":
        yield _world(root, base, {})
        return
    with postgres_server() as uri:
        given = {"TUTTI_DATABASE_URL": uri}
        home = Home(root / "home", root, given)
        assert home.tutti("db", "upgrade").returncode == 0
        yield _world(root, base, given)


def _world(root: Path, base: Path, settings: dict[str, str]) -> World:
    home = Home(root / "home", root, {"TUTTI_WORKER_THREADS": "1", **settings})
    world = World(home, Files(write_rows(root / "in.jsonl", NUM_ROWS), root), NUM_ROWS, SHARD_ROWS)
    parts = world.parts()
    fill(parts, base)
    request = world.files.request("calm.jsonl", shard_rows=SHARD_ROWS)
    run_batch(parts, request, None, InlinePool())
    parts.close()
    world.calm = b"".join(world.files.output("calm.jsonl").values())
    return world


on_sqlite = pytest.mark.parametrize("world", ["sqlite"], indirect=True)
on_both = pytest.mark.parametrize(
    "world", ["sqlite", pytest.param("pg", marks=pytest.mark.postgres)], indirect=True
)


@on_both
def test_a_killed_driver_and_a_promotion_change_nothing_and_of_two_resumptions_one_works(
    world: World,
) -> None:
    process = world.run("killed.jsonl")
    run, _ = world.reach("killed.jsonl", 4)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    found = world.ledger("killed.jsonl")
    assert found is not None
    done = found[1]
    assert 4 <= len(done) < NUM_ROWS // SHARD_ROWS
    parts = world.parts()
    version = register(parts, "colour", ("green", "grey"), 77)
    parts.prompts.promote(PromptRef("colour", version.number), "production", parts.actor)
    parts.close()
    both = [world.start("resume", run.id) for _ in range(2)]
    said = [each.communicate(timeout=TIMEOUT_S)[1] for each in both]
    codes = sorted(each.returncode for each in both)
    assert codes in ([0, 2], [0, 0]), said  # [0, 0]: the second came when all was done
    if codes == [0, 2]:
        assert sum("is being answered by" in each for each in said) == 1
    world.check("killed.jsonl")
    parts = world.parts()
    parts.prompts.promote(PromptRef("colour", 1), "production", parts.actor)  # for the next tests
    parts.close()
    after = world.ledger("killed.jsonl")
    assert after is not None
    assert {number: after[1][number] for number in done} == done


@on_sqlite
def test_a_killed_worker_costs_nothing(world: World) -> None:
    process = world.run("worker.jsonl")
    world.reach("worker.jsonl", 3)
    pids = ray_workers(world.home)
    assert pids
    os.kill(pids[0], signal.SIGKILL)
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    world.check("worker.jsonl")
    found = world.ledger("worker.jsonl")
    assert found is not None
    assert set(found[1].values()) == {1}  # no shard was claimed twice


@on_sqlite
def test_an_interrupted_run_says_how_to_go_on(world: World) -> None:
    process = world.run("left.jsonl")
    run, _ = world.reach("left.jsonl", 1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, said
    assert f"tutti batch resume {run.id[:12]}" in said
    assert "Traceback" not in said
    parts = world.parts()
    resume_batch(parts, run.id, None, InlinePool())
    parts.close()
    world.check("left.jsonl")


def rss(pid: int) -> int:
    """A process's own memory in bytes: resident, without what it shares with others."""
    try:
        words = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(words[1]) - int(words[2])) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_over_a_hundred_thousand_rows(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path, {"TUTTI_WORKER_THREADS": "1"})
    world = World(home, Files(tmp_path / "in.jsonl", tmp_path), 100_000, 1024)
    parts = world.parts()
    fill(parts, make_tiny_base(tmp_path / "base"))
    parts.close()
    total = world.num_rows
    with world.files.source.open("w") as file:
        for number in range(total):
            fields = {"word": f"w{number % 997}", "colour": "red"}
            file.write(json.dumps({"task": "colour", "fields": fields, "id": number}) + "\n")
    process = world.start("run", "--input", "in.jsonl", "--output", "out")
    early: dict[int, int] = {}
    late: dict[int, int] = {}
    while process.poll() is None:
        found = world.ledger("out")
        share = found[0].num_answered / total if found else 0.0
        for pid in (process.pid, *ray_workers(home)):
            if 0.1 < share < 0.4:
                early[pid] = max(early.get(pid, 0), rss(pid))
            elif share > 0.7:
                late[pid] = max(late.get(pid, 0), rss(pid))
        time.sleep(0.5)
    _, said = process.communicate()
    assert process.returncode == 0, said
    both = set(early) & set(late)
    assert process.pid in both
    assert len(both) >= 2  # the driver and a worker
    growth = {pid: (late[pid] - early[pid]) / MB for pid in both}
    assert max(growth.values()) < 60, growth
    rows = sum(len(data.splitlines()) for data in world.files.output("out").values())
    assert rows == total
