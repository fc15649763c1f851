"""A page holds exactly the versions a filter means, newest first, on both databases."""

import operator
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import PromptRef, PromptVersion, TrainedPrompt
from orchestrator.domain.version_filter import (
    OPPOSITE,
    Combination,
    Comparison,
    VersionFilter,
    parse_filter,
)
from orchestrator.registry import version_page
from orchestrator.registry.base_model_registry import BaseModelRegistry
from orchestrator.registry.database import Database
from orchestrator.registry.prompt_registry import PromptRegistry
from tests.orchestrator.registry.conftest import BASE

Trained = Callable[..., TrainedPrompt]
JOBS = (None, "ab" * 16, "ac" * 16)
OTHER = digest_json("other base")
COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@pytest.fixture
def filled(database: Database, registry: PromptRegistry, trained: Trained) -> PromptRegistry:
    """Twelve versions of three tasks: accuracies 0 to 0.9, every third one without a loss."""
    bases = BaseModelRegistry(database)
    record = BaseModelRecord(
        "tiny",
        BASE,
        "s",
        "d",
        {"model.safetensors": "x"},
        "Llama",
        10,
        64,
        256,
        datetime.now(UTC),
    )
    bases.add(record)
    bases.add(replace(record, name="large", fingerprint=OTHER))
    for index in range(12):
        made = trained(("color", "shape", "size")[index % 3], index, (index % 10) / 10)
        metrics = dict(made.metrics) | ({"loss": index / 4} if index % 3 else {})
        base = (BASE, OTHER)[index % 2]
        lineage = replace(made.lineage, base_fingerprint=base, job=JOBS[index % len(JOBS)])
        registry.register(replace(made, metrics=metrics, lineage=lineage))
    registry.promote(PromptRef("color", 2), "production", "ann")
    registry.promote(PromptRef("size", 4), "production", "ann")
    return registry


def refs(versions: list[PromptVersion]) -> list[str]:
    return [version.ref for version in versions]


MEANINGS: list[tuple[str, list[str]]] = [
    ("metrics.accuracy > 0.75", ["color@4", "size@3"]),
    ("metrics.accuracy > 0.75 and base = tiny", ["size@3"]),
    ("metrics.accuracy > 0.75 and base = large", ["color@4"]),
    ("base = nowhere", []),
    ("metrics.nothing > 0", []),
    ("not metrics.nothing > 0", []),
    ("alias = production", ["size@4", "color@2"]),
    ("alias = production and metrics.accuracy < 0.2", ["size@4"]),
    ("task = shape and alias != production and number <= 2", ["shape@2", "shape@1"]),
    ("job = ab and task = shape", ["shape@4", "shape@3", "shape@2", "shape@1"]),
    (f"job = {JOBS[2]} and number = 1", ["size@1"]),
    ("age < 1h and number = 4", ["size@4", "shape@4", "color@4"]),
    ("age > 1h", []),
    ("created > 2020-01-01 and number = 1", ["size@1", "shape@1", "color@1"]),
    ("created < 2020-01-01 or number = 1", ["size@1", "shape@1", "color@1"]),
    ("task = \"x' OR '1'='1\"", []),
]


def test_a_filter_finds_what_it_says(filled: PromptRegistry) -> None:
    found = [(where, refs(filled.list(where=parse_filter(where)))) for where, _ in MEANINGS]
    assert found == MEANINGS


def holds(where: VersionFilter, version: PromptVersion, now: datetime) -> bool:
    """What a filter means, in plain Python."""
    if isinstance(where, Combination):
        join = all if where.word == "and" else any
        return join(holds(part, version, now) for part in where.parts)
    if where.metric is not None:
        value = version.metrics.get(where.metric)
        return value is not None and COMPARE[where.symbol](value, where.value)
    if where.field == "alias":
        return (where.value in version.aliases) == (where.symbol == "=")
    if where.field == "job":
        is_it = (version.lineage.job or "").startswith(str(where.value))
        return is_it == (where.symbol == "=")
    values = {
        "task": version.task,
        "number": version.number,
        "base": {BASE: "tiny", OTHER: "large"}[version.lineage.base_fingerprint],
        "created": version.created_at,
        "age": now - version.created_at,
    }
    return bool(COMPARE[where.symbol](values[where.field], where.value))


def filters() -> st.SearchStrategy[VersionFilter]:
    equal, order = st.sampled_from(["=", "!="]), st.sampled_from(["<", "<=", ">", ">="])
    any_ = st.sampled_from(list(OPPOSITE))
    names = {
        "task": ["color", "shape", "none"],
        "base": ["tiny", "large", "none"],
        "alias": ["production", "none"],
        "job": ["ab", "a", JOBS[2], "none"],
    }
    leaves = [
        st.builds(Comparison, st.just(field), equal, st.sampled_from(values))
        for field, values in names.items()
    ]
    leaves += [
        st.builds(
            Comparison,
            st.just("metrics"),
            any_,
            st.sampled_from([0.0, 0.3, 0.5, 1.25, 2.0]),
            st.sampled_from(["accuracy", "loss", "none"]),
        ),
        st.builds(Comparison, st.just("number"), any_, st.integers(1, 4)),
        st.builds(Comparison, st.just("age"), order, st.sampled_from([timedelta(hours=1)])),
    ]

    def join(inner: st.SearchStrategy[VersionFilter]) -> st.SearchStrategy[VersionFilter]:
        parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.builds(Combination, st.sampled_from(["and", "or"]), parts)

    return st.recursive(st.one_of(leaves), join, max_leaves=5)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    where=filters(),
    few=st.sampled_from([(0, 0), (10_000, 0), (10_000, 10_000)]),
    limit=st.integers(1, 5),
)
def test_pages_hold_what_the_filter_means(
    filled: PromptRegistry, where: VersionFilter, few: tuple[int, int], limit: int
) -> None:
    """Wherever the walk starts, and however it is cut into pages."""
    every = filled.list()
    now = datetime.now(UTC)
    expected = [version.ref for version in every if holds(where, version, now)]
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(version_page, "FEW", few[0])
        patch.setattr(version_page, "FEW_BESIDE_RARE", few[1])
        patch.setattr(version_page, "SAMPLE", 4)
        patch.setattr(version_page, "RARE", 0.25)
        before = None
        while page := filled.list(where=where, limit=limit, before=before):
            found += refs(page)
            before = PromptRef(page[-1].task, page[-1].number)
    assert found == expected


def test_a_page_before_an_unknown_version_says_what_exists(filled: PromptRegistry) -> None:
    with pytest.raises(UnknownName, match="color has no version 9; it has 1 to 4"):
        filled.list(before=PromptRef("color", 9))


def test_a_page_starts_below_versions_registered_meanwhile(
    filled: PromptRegistry, trained: Trained
) -> None:
    first = filled.list(limit=3)
    filled.register(trained("color", "meanwhile"))
    second = filled.list(limit=3, before=PromptRef(first[-1].task, first[-1].number))
    assert refs(first + second) == [
        f"{task}@{number}" for number in (4, 3) for task in ("size", "shape", "color")
    ]
