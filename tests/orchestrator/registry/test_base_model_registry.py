"""Base models: a name means its newest row, and old fingerprints are still found."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from threading import Barrier

import pytest

from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.registry.base_model_registry import BaseModelRegistry
from orchestrator.registry.database import Database

RECORD = BaseModelRecord(
    name="smollm2-135m",
    fingerprint="a" * 64,
    source="/models/smollm2",
    source_digest="c" * 64,
    files={"model.safetensors": "d" * 64},
    architecture="LlamaForCausalLM",
    num_parameters=134_515_008_000,
    hidden_size=576,
    max_length=8192,
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
)
OTHER = replace(RECORD, fingerprint="b" * 64, source_digest="e" * 64)


@pytest.fixture
def bases(database: Database) -> BaseModelRegistry:
    return BaseModelRegistry(database)


def test_base_comes_back_as_it_was_added(bases: BaseModelRegistry) -> None:
    assert bases.add(RECORD) == (RECORD, True)
    assert bases.get(RECORD.name) == bases.get_by_fingerprint(RECORD.fingerprint) == RECORD
    assert bases.list() == [RECORD]


def test_time_of_another_zone_comes_back_in_utc(bases: BaseModelRegistry) -> None:
    local = RECORD.created_at.astimezone(timezone(timedelta(hours=9)))
    bases.add(replace(RECORD, created_at=local))
    assert bases.get(RECORD.name).created_at.utcoffset() == timedelta(0)
    assert bases.get(RECORD.name) == RECORD


def test_adding_the_same_fingerprint_again_changes_nothing(bases: BaseModelRegistry) -> None:
    bases.add(RECORD)
    assert bases.add(replace(RECORD, source="/elsewhere")) == (RECORD, False)


def test_name_with_another_fingerprint_is_refused_with_both(bases: BaseModelRegistry) -> None:
    bases.add(RECORD)
    with pytest.raises(
        InvalidInput, match=r"aaaaaaaaaaaa, this one has bbbbbbbbbbbb(.|\n)*--replace"
    ):
        bases.add(OTHER)
    assert bases.list() == [RECORD]


def test_replaced_base_is_still_found_by_fingerprint(bases: BaseModelRegistry) -> None:
    bases.add(RECORD)
    assert bases.add(OTHER, replace=True) == (OTHER, True)
    assert bases.get(RECORD.name) == OTHER
    assert bases.get_by_fingerprint(RECORD.fingerprint) == RECORD
    assert bases.list() == [OTHER]


def test_name_can_return_to_its_old_base(bases: BaseModelRegistry) -> None:
    bases.add(RECORD)
    bases.add(OTHER, replace=True)
    assert bases.add(RECORD, replace=True) == (RECORD, True)
    assert bases.get(RECORD.name) == RECORD


def test_unknown_name_lists_close_ones_and_the_command(bases: BaseModelRegistry) -> None:
    with pytest.raises(UnknownName, match="there is none yet"):
        bases.get("smollm")
    bases.add(RECORD)
    with pytest.raises(UnknownName, match=r"mean 'smollm2-135m'\?\n.*`tutti base add`"):
        bases.get("smollm2-135")


def test_unknown_fingerprint_is_named(bases: BaseModelRegistry) -> None:
    with pytest.raises(UnknownName, match="fingerprint ffffffffffff\n"):
        bases.get_by_fingerprint("f" * 64)


@pytest.mark.parametrize("name", ["", "A", "../x", "x" * 101, "a\x00", "'; DROP TABLE jobs; --"])
def test_name_that_is_no_name_is_refused(bases: BaseModelRegistry, name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a name"):
        bases.add(replace(RECORD, name=name))
    with pytest.raises(UnknownName):
        bases.get(name)


def test_parallel_adds_of_one_name_give_one_base(bases: BaseModelRegistry) -> None:
    together = Barrier(8)

    def add(number: int, name: str) -> bool:
        together.wait()
        try:
            return bases.add(replace(RECORD, name=name, fingerprint=f"{number:064x}"))[1]
        except InvalidInput:
            return False

    with ThreadPoolExecutor(8) as pool:
        for name in "abcdef":
            assert sum(pool.map(add, range(8), [name] * 8)) == 1
