"""Scores in bins, against the plain loop."""

import random

import pytest

from orchestrator.batch_report.calibration import NUM_BINS, ScoreCount


def test_the_calibration_error_is_the_weighted_distance_of_score_and_hits() -> None:
    generator = random.Random(0)
    pairs = [(generator.random(), generator.random() < 0.6) for _ in range(500)]
    count = ScoreCount()
    for score, is_right in pairs:
        count.add(score, is_right)
    found = count.freeze()
    assert found is not None
    expected = 0.0
    for place in range(NUM_BINS):
        own = [pair for pair in pairs if int(pair[0] * NUM_BINS) == place]
        mean = sum(score for score, _ in own) / len(own)
        share = sum(right for _, right in own) / len(own)
        expected += len(own) / len(pairs) * abs(mean - share)
    assert found.error == pytest.approx(expected)


def test_without_known_answers_there_is_no_error_and_without_scores_nothing() -> None:
    count = ScoreCount()
    assert count.freeze() is None
    count.add(0.5, None)
    found = count.freeze()
    assert found is not None
    assert (found.error, found.num_rows) == (None, 1)


@pytest.mark.parametrize(("score", "place"), [(0.0, 0), (1.0, 9), (1.000001, 9), (-1e-9, 0)])
def test_scores_at_and_beyond_the_ends_count_in_the_last_bins(score: float, place: int) -> None:
    count = ScoreCount()
    count.add(score, None)
    found = count.freeze()
    assert found is not None
    assert [each.num_rows for each in found.bins].index(1) == place
