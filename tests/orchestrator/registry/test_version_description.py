"""Descriptions and tags change; who changed what, and when, stays."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.registry.prompt_registry import PromptRegistry

REF = PromptRef("color", 1)


@pytest.fixture
def made(registry: PromptRegistry, trained: Callable[..., TrainedPrompt]) -> PromptRegistry:
    registry.register(trained())
    return registry


def said(registry: PromptRegistry) -> list[tuple[str, str | None, str | None, str]]:
    return [(each.field, each.old, each.new, each.actor) for each in registry.changes(REF)]


def test_new_version_has_neither_description_nor_tags(made: PromptRegistry) -> None:
    version = made.resolve(REF)
    assert (version.description, version.tags, made.changes(REF)) == ("", {}, [])


def test_description_and_tags_change_with_their_history(made: PromptRegistry) -> None:
    made.describe(REF, "ann", "first try", {"team": "nlp", "a.b": ""})
    version = made.describe(REF, "bob", tags={"team": "vision", "a.b": None})
    assert (version.description, version.tags) == ("first try", {"team": "vision"})
    assert made.list("color") == [version] == [made.resolve(REF)]
    assert made.describe(REF, "cid", "").description == ""
    assert said(made) == [
        ("description", "first try", None, "cid"),
        ("tags.team", "nlp", "vision", "bob"),
        ("tags.a.b", "", None, "bob"),
        ("tags.team", None, "nlp", "ann"),
        ("tags.a.b", None, "", "ann"),
        ("description", None, "first try", "ann"),
    ]
    assert all(each.changed_at.tzinfo for each in made.changes(REF))


def test_same_words_again_are_no_change(made: PromptRegistry) -> None:
    made.describe(REF, "ann", "x", {"team": "nlp"})
    made.describe(REF, "bob", "x", {"team": "nlp"})
    made.describe(REF, "bob")
    assert {each.actor for each in made.changes(REF)} == {"ann"}


def test_content_stays_what_it_was(
    made: PromptRegistry, trained: Callable[..., TrainedPrompt]
) -> None:
    before = made.resolve(REF)
    after = made.describe(REF, "ann", "x", {"team": "nlp"})
    assert (after.digest, after.config, after.lineage) == (
        before.digest,
        before.config,
        before.lineage,
    )
    assert made.register(trained()) == (after, False)


@pytest.mark.parametrize("key", ["", "Team", "a b", "a..b", "-a", "a\x00", "x" * 101])
def test_tag_that_is_no_name_is_refused(made: PromptRegistry, key: str) -> None:
    with pytest.raises(InvalidInput, match="tag: .* is not a name"):
        made.describe(REF, "ann", "x", {"good": "1", key: "1"})
    assert made.changes(REF) == []


def test_removal_of_a_tag_that_is_not_there_says_which_are(made: PromptRegistry) -> None:
    made.describe(REF, "ann", tags={"team": "nlp"})
    with pytest.raises(UnknownName, match="no tag of color@1 'teem'; did you mean 'team'"):
        made.describe(REF, "ann", tags={"teem": None})


def test_too_much_is_refused(made: PromptRegistry) -> None:
    with pytest.raises(InvalidInput, match="10001 characters; at most 10000"):
        made.describe(REF, "ann", "x" * 10_001)
    with pytest.raises(InvalidInput, match="tag team has 1001 characters; at most 1000"):
        made.describe(REF, "ann", tags={"team": "x" * 1001})
    with pytest.raises(InvalidInput, match="101 tags; at most 100"):
        made.describe(REF, "ann", tags={f"t{number}": "" for number in range(101)})
    assert made.changes(REF) == []


def test_tags_set_at_once_are_all_there(made: PromptRegistry) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: made.describe(REF, "ann", tags={f"t{n}": "x"}), range(16)))
    assert made.resolve(REF).tags.keys() == {f"t{number}" for number in range(16)}
    assert len(made.changes(REF)) == 16
