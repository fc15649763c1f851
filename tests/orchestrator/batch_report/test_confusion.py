"""Frequent classes stand alone, the rest is pooled, and nothing is lost."""

from orchestrator.batch_report.confusion import MAX_CLASSES, SHOWN_CLASSES, ConfusionCount


def test_rare_classes_are_pooled_and_their_hits_kept() -> None:
    count = ConfusionCount()
    for place in range(SHOWN_CLASSES + 5):
        for _ in range(100 - place):
            count.add(f"c{place:02}", f"c{place:02}", True)
    count.add("c00", "something else", False)
    found = count.freeze()
    assert found is not None
    assert found.classes == tuple(f"c{place:02}" for place in range(SHOWN_CLASSES))
    assert found.is_pooled
    pooled = sum(100 - place for place in range(SHOWN_CLASSES, SHOWN_CLASSES + 5))
    assert found.counts[-1][-1] == found.num_pooled_hits == pooled
    assert found.counts[0][-1] == 1


def test_an_empty_text_is_a_class_and_a_long_one_is_not_told_apart() -> None:
    count = ConfusionCount()
    count.add("", "", True)
    count.add("a", "x" * 1000, False)
    found = count.freeze()
    assert found is not None
    assert found.classes == ("", "a")
    assert found.counts == ((1, 0, 0), (0, 0, 1), (0, 0, 0))


def test_texts_beyond_the_bound_are_one() -> None:
    count = ConfusionCount()
    for place in range(MAX_CLASSES + 50):
        count.add("a", str(place), False)
    assert len(count._known) == MAX_CLASSES
    found = count.freeze()
    assert found is not None
    assert sum(map(sum, found.counts)) == MAX_CLASSES + 50
