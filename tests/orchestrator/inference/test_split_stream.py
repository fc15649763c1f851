"""Shards through groups of workers that are lost at given shards; no Ray."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from orchestrator.domain.batch_run import ShardClaim, ShardDone
from orchestrator.domain.errors import InvalidData, TuttiError
from orchestrator.inference.group_watch import GroupLost
from orchestrator.inference.split_stream import answer_together

CLAIMS = [ShardClaim(number, 1) for number in range(10)]


def done(claim: ShardClaim) -> ShardDone:
    return ShardDone(claim.number, claim.epoch, "", "", 0, 0, 0, 0.0, {})


@dataclass
class World:
    """Groups of four places that answer the last shard they were given; `deadly` shards end a group
    so often, once it is their turn."""

    deadly: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    num_groups: int = 0
    num_ended: int = 0
    before: Callable[[int], None] = lambda number: None
    stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> "Group":
        self.num_groups += 1
        return Group(self)

    def run(self) -> list[int]:
        stream = answer_together(self.start, CLAIMS, self.notes.append, self.stop)
        return [each.number for each in stream]


@dataclass
class Group:
    world: World
    held: list[ShardClaim] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return len(self.held) < 4

    def give(self, claim: ShardClaim) -> None:
        self.held.append(claim)

    def take(self) -> list[ShardDone]:
        claim = self.held.pop()
        self.world.before(claim.number)
        if self.world.deadly.get(claim.number, 0) > 0:
            self.world.deadly[claim.number] -= 1
            raise GroupLost("worker 1 of 2 died")
        self.world.answered.append(claim.number)
        return [done(claim)]

    def end(self) -> None:
        self.world.num_ended += 1


def test_each_shard_is_answered_once_by_one_group() -> None:
    world = World()
    assert sorted(world.run()) == list(range(10))
    assert (world.num_groups, world.num_ended, world.notes) == (1, 1, [])


def test_a_lost_group_is_replaced_and_what_is_done_is_not_done_again() -> None:
    world = World({3: 1, 7: 2})
    assert sorted(world.run()) == list(range(10))
    assert sorted(world.answered) == list(range(10))
    assert world.num_groups == world.num_ended == 4
    assert world.notes[0] == ("worker 1 of 2 died; its group starts again, and 4 shards with it")


def test_a_shard_that_always_ends_its_group_ends_the_run_after_all_others() -> None:
    world = World({4: 99})
    with pytest.raises(TuttiError, match="lost 4 times in a row.*: worker 1 of 2 died"):
        world.run()
    assert sorted(world.answered) == [number for number in range(10) if number != 4]
    assert world.num_ended == world.num_groups


def test_what_is_wrong_with_a_shard_ends_the_run_at_once() -> None:
    def before(number: int) -> None:
        if number == 2:
            raise InvalidData("in.jsonl: has changed")

    world = World(before=before)
    with pytest.raises(InvalidData):
        world.run()
    assert (world.num_groups, world.num_ended) == (1, 1)


def test_who_leaves_ends_the_workers() -> None:
    world = World()
    world.before = lambda number: world.stop.set()
    assert len(world.run()) == 1
    assert world.num_ended == 1
