"""One process at a time works on a run, a shard counts once, what comes late changes nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from orchestrator.domain.batch_run import (
    BatchState,
    RunLease,
    ShardClaim,
    ShardDone,
    ShardState,
    sum_counts,
)
from orchestrator.domain.errors import InvalidInput, StaleLease, UnknownName
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import now
from orchestrator.registry.tables import batch_runs, batch_shards
from tests.orchestrator.registry.batch_plans import answer, make_plan

ONE, TWO = "1" * 32, "2" * 32
SIZES = (3, 3, 2)


@pytest.fixture
def book(database: Database) -> BatchBook:
    return BatchBook(database)


def begin(book: BatchBook, run_id: str = ONE, output: str = "/out") -> RunLease:
    plan = make_plan(SIZES, output=output)
    return book.create(run_id, plan, "in.jsonl", "ann", "host:1:1", 60)


def expire(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(batch_runs).values(lease_expires_at=now(-1)))


def take_over(book: BatchBook, holder: str = "host:2:2") -> RunLease:
    return book.lead(ONE, holder, 60, lambda other: other == "host:1:1")


def is_alive(_: str) -> bool:
    return False


def test_one_is_at_work_while_its_holder_lives_and_shards_are_left(
    book: BatchBook, database: Database
) -> None:
    assert not book.is_one_at_work()
    lease = begin(book)
    assert book.is_one_at_work()
    claims = book.claim(lease)
    book.commit(lease, [answer(each, SIZES[each.number]) for each in claims[1:]])
    assert book.is_one_at_work()
    expire(database)
    assert not book.is_one_at_work()
    lease = take_over(book)
    assert book.is_one_at_work()
    book.commit(lease, [answer(each, SIZES[each.number]) for each in book.claim(lease)])
    assert not book.is_one_at_work(), "nothing is left to answer"
    book.finish(lease, 1.0)
    assert not book.is_one_at_work()


def test_a_run_begins_with_all_its_shards_free(book: BatchBook) -> None:
    lease = begin(book)
    run = book.get("111111")
    assert (run.id, run.state, run.owner, run.holder) == (ONE, "running", "ann", "host:1:1")
    assert (run.num_shards, run.num_shards_done, run.num_rows, run.num_answered) == (3, 0, 8, 0)
    assert book.plan(ONE) == make_plan(SIZES)
    shards = book.shards(ONE)
    assert [(s.number, s.state, s.epoch, s.num_rows) for s in shards] == [
        (0, "queued", 0, 3),
        (1, "queued", 0, 3),
        (2, "queued", 0, 2),
    ]
    assert lease.epoch == 1


def test_claims_go_by_number_and_raise_the_epoch(book: BatchBook) -> None:
    lease = begin(book)
    assert [(c.number, c.epoch) for c in book.claim(lease, 2)] == [(0, 1), (1, 1)]
    assert [(c.number, c.epoch) for c in book.claim(lease)] == [(2, 1)]
    assert book.claim(lease) == []


def test_a_run_that_is_answered_whole_succeeds_with_its_counts(book: BatchBook) -> None:
    lease = begin(book)
    claims = book.claim(lease)
    book.commit(lease, [answer(claim, SIZES[claim.number]) for claim in claims[:2]])
    run = book.get(ONE)
    assert (run.num_shards_done, run.num_answered, run.num_errors) == (2, 6, 2)
    book.commit(lease, [answer(claims[2], 2)])
    run = book.finish(lease, 1.5)
    assert (run.state, run.num_answered, run.num_errors, run.seconds) == ("succeeded", 8, 3, 1.5)
    assert run.holder is None
    assert run.finished_at is not None
    (count,) = sum_counts(book.shards(ONE)).values()
    assert (count.rows, count.errors, count.tokens, count.positions) == (8, 3, 21, 150)


def test_a_commit_whose_answer_was_lost_is_made_again_without_harm(book: BatchBook) -> None:
    lease = begin(book)
    (claim,) = book.claim(lease, 1)
    for _ in range(2):
        book.commit(lease, [answer(claim, 3)])
    assert book.get(ONE).num_answered == 3
    with pytest.raises(StaleLease, match="shard 0 at epoch 1"):
        book.commit(lease, [answer(claim, 3, "other bytes")])


def test_a_late_commit_is_refused_whole(book: BatchBook) -> None:
    old = begin(book)
    claims = book.claim(old)
    new = take_over(book)
    late = [answer(claim, SIZES[claim.number]) for claim in claims]
    with pytest.raises(StaleLease, match=r"was taken over by host \(pid 2\)"):
        book.commit(old, late)
    again = book.claim(new)
    assert [(c.number, c.epoch) for c in again] == [(0, 2), (1, 2), (2, 2)]
    with pytest.raises(StaleLease):  # the old epochs, even under the new lease
        book.commit(new, [answer(again[0], 3), late[1]])
    assert book.get(ONE).num_answered == 0
    assert {shard.state for shard in book.shards(ONE)} == {ShardState.CLAIMED}


def test_who_takes_over_finds_what_is_done(book: BatchBook) -> None:
    old = begin(book)
    claims = book.claim(old, 2)
    book.commit(old, [answer(claims[0], 3)])
    new = take_over(book)
    assert [c.number for c in book.claim(new)] == [1, 2]
    assert [(s.state, s.epoch) for s in book.shards(ONE)] == [
        ("done", 1),
        ("claimed", 2),
        ("claimed", 1),
    ]


def test_a_run_that_somebody_answers_is_not_taken(book: BatchBook, database: Database) -> None:
    begin(book)
    with pytest.raises(InvalidInput, match=r"is being answered by host \(pid 1\)"):
        book.lead(ONE, "host:2:2", 60, is_alive)
    expire(database)
    assert book.get(ONE).holder is None
    assert book.lead(ONE, "host:2:2", 60, is_alive).epoch == 2


def test_a_lease_that_ended_but_was_not_taken_still_commits(
    book: BatchBook, database: Database
) -> None:
    lease = begin(book)
    (claim,) = book.claim(lease, 1)
    expire(database)
    book.commit(lease, [answer(claim, 3)])
    book.renew(lease, 60)
    assert book.get(ONE).holder == "host:1:1"


def test_a_released_run_is_taken_at_once(book: BatchBook) -> None:
    lease = begin(book)
    book.claim(lease)
    assert book.release(lease, 2.0).state == BatchState.RUNNING
    assert {shard.state for shard in book.shards(ONE)} == {ShardState.QUEUED}
    new = book.lead(ONE, "host:2:2", 60, is_alive)
    assert len(book.claim(new)) == 3
    with pytest.raises(StaleLease):
        book.renew(lease, 60)


def test_a_failed_run_says_why_and_may_be_resumed(book: BatchBook) -> None:
    run = book.fail(begin(book), "the input has changed", 1.0)
    assert (run.state, run.error, run.can_resume) == ("failed", "the input has changed", True)
    book.lead(ONE, "host:2:2", 60, is_alive)
    run = book.get(ONE)
    assert (run.state, run.error, run.finished_at) == ("running", None, None)


def test_a_cancelled_run_ends_and_its_holder_hears_of_it(book: BatchBook) -> None:
    lease = begin(book)
    (claim,) = book.claim(lease, 1)
    for _ in range(2):
        assert book.cancel(ONE).state == BatchState.CANCELLED
    for write in (
        lambda: book.renew(lease, 60),
        lambda: book.commit(lease, [answer(claim, 3)]),
        lambda: book.claim(lease),
        lambda: book.fail(lease, "x", 1.0),
        lambda: book.release(lease, 1.0),
    ):
        with pytest.raises(StaleLease, match=f"batch run {ONE[:12]} is cancelled"):
            write()
    with pytest.raises(InvalidInput, match="is cancelled: there is nothing to resume"):
        take_over(book)


def test_a_run_that_has_succeeded_stays(book: BatchBook) -> None:
    lease = begin(book)
    book.commit(lease, [answer(claim, SIZES[claim.number]) for claim in book.claim(lease)])
    book.finish(lease, 1.0)
    with pytest.raises(InvalidInput, match="has succeeded: nothing to cancel"):
        book.cancel(ONE)
    with pytest.raises(InvalidInput, match="is succeeded: there is nothing to resume"):
        take_over(book)


def test_a_run_does_not_succeed_with_a_shard_missing(book: BatchBook) -> None:
    lease = begin(book)
    book.commit(lease, [answer(claim, 3) for claim in book.claim(lease, 2)])
    with pytest.raises(AssertionError):
        book.finish(lease, 1.0)


def test_a_lost_part_is_answered_again(book: BatchBook) -> None:
    lease = begin(book)
    book.commit(lease, [answer(claim, SIZES[claim.number]) for claim in book.claim(lease)])
    book.reopen(lease, {1})
    run = book.get(ONE)
    assert (run.num_shards_done, run.num_answered, run.num_errors) == (2, 5, 2)
    assert [(c.number, c.epoch) for c in book.claim(lease)] == [(1, 2)]


def test_two_runs_do_not_write_to_one_output(book: BatchBook) -> None:
    lease = begin(book)
    with pytest.raises(InvalidInput, match=f"/out: batch run {ONE[:12]}, which has not ended"):
        begin(book, TWO)
    book.fail(lease, "x", 0.0)
    with pytest.raises(InvalidInput, match="which has not ended"):
        begin(book, TWO)
    begin(book, "3" * 32, output="/elsewhere")
    book.cancel(ONE)
    begin(book, TWO)
    assert [run.id[0] for run in book.list()] == ["2", "3", "1"]
    assert [run.id[0] for run in book.list([BatchState.CANCELLED])] == ["1"]
    assert book.list(owner="bob") == []


@pytest.mark.parametrize("name", ["", "12345", "g" * 32, "1" * 33, "%", "../x"])
def test_a_wrong_id_is_refused(book: BatchBook, name: str) -> None:
    begin(book)
    with pytest.raises(UnknownName):
        book.get(name)


def test_of_many_who_take_a_run_one_gets_it_and_each_shard_once(
    book: BatchBook, database: Database
) -> None:
    begin(book)
    expire(database)
    barrier = threading.Barrier(6)

    def resume(number: int) -> tuple[RunLease | None, list[int]]:
        barrier.wait()
        try:
            lease = book.lead(ONE, f"host:{number}:1", 60, is_alive)
        except InvalidInput:
            return None, []
        return lease, [claim.number for claim in book.claim(lease)]

    with ThreadPoolExecutor(6) as threads:
        got = list(threads.map(resume, range(6)))
    winners = [(lease, claims) for lease, claims in got if lease is not None]
    assert len(winners) == 1
    assert winners[0][1] == [0, 1, 2]


def test_claims_of_many_threads_under_one_lease_never_double(book: BatchBook) -> None:
    lease = book.create(ONE, make_plan((1,) * 40), "in", "ann", "host:1:1", 60)
    barrier = threading.Barrier(4)

    def claim(_: int) -> list[int]:
        barrier.wait()
        return [claim.number for _ in range(5) for claim in book.claim(lease, 2)]

    with ThreadPoolExecutor(4) as threads:
        numbers = [number for claims in threads.map(claim, range(4)) for number in claims]
    assert sorted(numbers) == list(range(40))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "commit", "late", "take", "release", "reopen"]), st.integers(0, 2)
    ),
    max_size=25,
)


@given(STEPS)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_each_shard_counts_once(
    database: Database, steps: list[tuple[str, int]]
) -> None:
    """Against a model: what is done stays done at its epoch, epochs only grow, totals add up."""
    book = BatchBook(database)
    with database.write() as connection:
        connection.execute(delete(batch_shards))
        connection.execute(delete(batch_runs))
    lease: RunLease | None = begin(book)
    old: list[RunLease] = []
    claims: dict[int, int] = {}
    done: dict[int, int] = {}
    for step, number in steps:
        if step == "take":
            if lease is not None:
                old.append(lease)
            lease, claims = book.lead(ONE, "host:9:9", 60, lambda _: True), {}
        elif lease is None:
            continue
        elif step == "claim":
            for claim in book.claim(lease, number):
                assert claim.number not in claims
                assert claim.number not in done
                claims[claim.number] = claim.epoch
        elif step == "commit" and number in claims:
            book.commit(lease, [answer_of(number, claims[number])])
            done[number] = claims.pop(number)
        elif step == "late" and old:
            with pytest.raises(StaleLease):
                book.commit(old[-1], [answer_of(number, 1)])
        elif step == "release":
            old.append(lease)
            book.release(lease, 0.0)
            lease, claims = None, {}
        elif step == "reopen" and number in done:
            book.reopen(lease, [number])
            del done[number]
        shards = {shard.number: shard for shard in book.shards(ONE)}
        assert {n: s.epoch for n, s in shards.items() if s.state == ShardState.DONE} == done
        assert {n for n, s in shards.items() if s.state == ShardState.CLAIMED} == set(claims)
        run = book.get(ONE)
        assert run.num_answered == sum(SIZES[n] for n in done)
        assert run.num_errors == run.num_shards_done == len(done)


def answer_of(number: int, epoch: int) -> ShardDone:
    return answer(ShardClaim(number, epoch), SIZES[number])
