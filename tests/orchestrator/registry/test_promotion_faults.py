"""Many processes move one alias at once, and a mover is killed (SIGKILL) at each of its statements:
the history stays one chain, and whoever comes after finds all of a move or nothing of it.

TUTTI_HISTORY_S is how long the processes go on (a minute for a thorough look).
"""

import itertools
import json
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.engine.default import DefaultDialect

from orchestrator.domain.errors import AliasMoved, InvalidInput
from orchestrator.domain.prompt_version import Promotion, PromptRef, TrainedPrompt
from orchestrator.registry.database import Database
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.tables import aliases, prompt_versions
from tests.kill_points import WHEN, where_killed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
NUM_PROCESSES = 64
NUM_VERSIONS = 5
HISTORY_S = float(os.environ.get("TUTTI_HISTORY_S", "10"))
FORK = multiprocessing.get_context(
    "fork"
)  # starting 64 interpreters would take longer than the test


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """A database whose connections do not outlast the block: none must cross a fork."""
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def url(database_url: str, trained: Callable[..., TrainedPrompt]) -> str:
    """A database with color@1 to color@5."""
    with opened(database_url) as database:
        for number in range(NUM_VERSIONS):
            PromptRegistry(database).register(trained(content=number))
    return database_url


def check_history(database: Database, alias: str) -> list[Promotion]:
    """Every move has exactly one predecessor, rollbacks went where they had to, alias and outbox
    say the same; the moves, oldest first."""
    registry = PromptRegistry(database)
    moves = registry.history("color", alias)[::-1]
    assert [move.generation for move in moves] == list(range(1, len(moves) + 1))
    assert [move.from_version for move in moves] == [None, *(m.to_version for m in moves)][:-1]
    stack: list[Promotion] = []
    for move in moves:
        if move.restores is None:
            stack.append(move)
        else:
            stack.pop()
            assert (move.restores, move.to_version) == (stack[-1].generation, stack[-1].to_version)
    last = moves[-1]
    standing = (last.generation, last.to_version) if last.to_version else None
    assert find_alias(database, alias) == standing
    told = [item.payload for item in Outbox(database).pending(10**6) if "alias" in item.payload]
    numbers = [payload.get("number") for payload in told if payload["alias"] == alias]
    assert numbers == [move.to_version for move in moves]
    return moves


def find_alias(database: Database, alias: str) -> tuple[int, int] | None:
    """The generation of color's alias, and the version it points at; None: it is none."""
    same = prompt_versions.c.id == aliases.c.version_id
    query = select(aliases.c.generation, prompt_versions.c.number).join(prompt_versions, same)
    with database.read() as connection:
        row = connection.execute(query.where(aliases.c.alias == alias)).one_or_none()
    return None if row is None else (row.generation, row.number)


def move_about(url: str, name: str, report: Path) -> None:
    """Move the alias to and fro until the time is over; report the moves that were answered."""
    chance = random.Random(name)
    end = time.monotonic() + HISTORY_S
    answered: dict[int, int | None] = {}
    refused = 0
    with opened(url) as database:
        registry = PromptRegistry(database)
        while time.monotonic() < end:
            _, seen = find_alias(database, "production") or (0, 0)
            believed = seen if chance.random() < 0.3 else None
            try:
                if chance.random() < 0.1:
                    move = registry.unset("color", "production", name, if_current=believed)
                elif chance.random() < 0.4:
                    move = registry.rollback("color", "production", name, if_current=believed)
                else:
                    ref = PromptRef("color", chance.randint(1, NUM_VERSIONS))
                    move = registry.promote(ref, "production", name, if_current=believed)
            except (AliasMoved, InvalidInput):  # it was elsewhere, or at its first version
                refused += 1
                continue
            if move.actor == name:
                answered[move.generation] = move.to_version
    report.write_text(json.dumps({"answered": sorted(answered.items()), "refused": refused}))


def test_64_processes_that_move_an_alias_make_one_chain_and_lose_no_move(
    url: str, tmp_path: Path
) -> None:
    with opened(url) as database:
        PromptRegistry(database).promote(PromptRef("color", 1), "production", "first")
    names = [f"mover-{number}" for number in range(NUM_PROCESSES)]
    movers = [FORK.Process(target=move_about, args=(url, n, tmp_path / n)) for n in names]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    assert [mover.exitcode for mover in movers] == [0] * NUM_PROCESSES
    with opened(url) as database:
        moves = check_history(database, "production")
    reports = {name: json.loads((tmp_path / name).read_text()) for name in names}
    answered = {name: [tuple(each) for each in reports[name]["answered"]] for name in names}
    for name in names:
        made = [(move.generation, move.to_version) for move in moves if move.actor == name]
        assert made == answered[name]
    num_rollbacks = sum(move.restores is not None for move in moves)
    num_removed = sum(move.to_version is None for move in moves)
    num_refused = sum(report["refused"] for report in reports.values())
    print(
        f"{len(moves)} moves, {num_rollbacks} of them rollbacks, {num_removed} removals; "
        f"{num_refused} refused"
    )
    assert num_removed > 3
    assert num_rollbacks > 10 < len(moves) - num_rollbacks


Act = Callable[[PromptRegistry, str], Promotion]


def first_promotion(registry: PromptRegistry, alias: str) -> Promotion:
    return registry.promote(PromptRef("color", 3), alias, "ann", if_current=0)


def promotion(registry: PromptRegistry, alias: str) -> Promotion:
    return registry.promote(PromptRef("color", 3), alias, "ann", if_current=2)


def rollback(registry: PromptRegistry, alias: str) -> Promotion:
    return registry.rollback("color", alias, "ann", if_current=2)


def removal(registry: PromptRegistry, alias: str) -> Promotion:
    return registry.unset("color", alias, "ann", if_current=2)


#: What is done, what the alias had pointed at before, and where it is after (None: nowhere).
CALLS = ((DefaultDialect, "do_execute"), (DefaultDialect, "do_commit"))
ACTS: list[tuple[Act, list[int], int | None]] = [
    (first_promotion, [], 3),
    (promotion, [1, 2], 3),
    (rollback, [1, 2], 1),
    (removal, [1, 2], None),
]


@pytest.mark.parametrize(("act", "before", "after"), ACTS, ids=lambda x: getattr(x, "__name__", ""))
def test_mover_killed_at_any_statement_has_moved_or_has_not_and_a_repeat_is_safe(
    url: str, act: Act, before: list[int], after: int | None
) -> None:
    met: Counter[str] = Counter()
    outcomes: set[bool] = set()
    for number, when in itertools.product(range(1000), WHEN):
        alias = f"{when}-{number}"
        with opened(url) as database:
            for each in before:
                PromptRegistry(database).promote(PromptRef("color", each), alias, "ann")

        def work(alias: str = alias) -> None:
            with opened(url) as database:
                act(PromptRegistry(database), alias)

        where = where_killed(work, CALLS, number, when)
        with opened(url) as database:
            registry = PromptRegistry(database)
            has_moved = len(registry.history("color", alias)) > len(before)
            assert has_moved or where != "after do_commit", number
            if has_moved or before:
                check_history(database, alias)
            try:
                assert act(registry, alias).to_version == after
            except AliasMoved:  # it is where the rollback brought it
                assert (act, has_moved) == (rollback, True)
            moves = check_history(database, alias)
        assert [move.to_version for move in moves] == [*before, after]
        if where is None:
            break
        met[where] += 1
        outcomes.add(has_moved)
    assert outcomes == {True, False}
    assert {"before do_commit", "after do_commit"} < met.keys()
    assert min(met["before do_execute"], met["after do_execute"]) > 5
