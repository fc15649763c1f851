"""The outbox: items in order, delivered once, and the names MLflow gave back."""

from collections.abc import Callable

import pytest

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry

Trained = Callable[..., TrainedPrompt]


def test_items_come_in_order_until_delivered(
    registry: PromptRegistry, outbox: Outbox, trained: Trained
) -> None:
    assert (outbox.pending(), outbox.num_pending(), outbox.oldest_pending()) == ([], 0, None)
    registry.register(trained())
    registry.promote(PromptRef("color", 1), "production", "ann")
    registry.register(trained(content=1))
    first, moved, second = outbox.pending()
    assert [item.kind for item in (first, moved, second)] == [
        "version_registered",
        "alias_moved",
        "version_registered",
    ]
    assert outbox.pending(limit=1) == [first]
    assert outbox.oldest_pending() == first
    outbox.delivered(first.id)
    outbox.delivered(first.id)
    assert outbox.pending() == [moved, second]
    assert outbox.num_pending() == 2


def test_failed_delivery_is_counted_and_stays(
    registry: PromptRegistry, outbox: Outbox, trained: Trained
) -> None:
    registry.register(trained())
    (item,) = outbox.pending()
    outbox.failed(item.id, "connection refused")
    outbox.failed(item.id, "timed out")
    (again,) = outbox.pending()
    assert (again.id, again.attempts, again.last_error) == (item.id, 2, "timed out")
    outbox.delivered(item.id)
    outbox.failed(item.id, "late")
    assert outbox.pending() == []


def test_linked_version_shows_its_mlflow_names(
    registry: PromptRegistry, outbox: Outbox, trained: Trained
) -> None:
    version, _ = registry.register(trained())
    assert (version.run_id, version.model_version) == (None, None)
    outbox.link(version, "run-1", "1")
    outbox.link(("color", 1), "run-2", "2")
    found = registry.resolve(PromptRef("color", 1))
    assert (found.run_id, found.model_version) == ("run-2", "2")
    assert registry.list() == [found]


def test_linking_an_unknown_version_is_refused(outbox: Outbox) -> None:
    with pytest.raises(UnknownName, match="no version 'color@1'"):
        outbox.link(("color", 1), "run-1", "1")
