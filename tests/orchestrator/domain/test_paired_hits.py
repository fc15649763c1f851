"""The figures of the papers, and what must hold for any counts."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.paired_hits import PairedHits, Share


@pytest.mark.parametrize(
    ("num_hits", "num_rows", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    num_hits: int, num_rows: int, low: float, high: float
) -> None:
    assert Share(num_hits, num_rows).interval == pytest.approx((low, high), abs=5e-5)


def test_the_difference_has_the_published_interval() -> None:
    # Newcombe 1998 (2635-2650), example (a), method 10: 36, 12, 2, 0 -> 0.0569 to 0.3404
    paired = PairedHits(both=36, only_a=2, only_b=12, neither=0)
    assert paired.difference == 0.2
    assert paired.difference_interval == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_mcnemar_is_the_exact_binomial() -> None:
    assert PairedHits(30, 0, 5, 0).p_value == pytest.approx(2 / 2**5)
    assert PairedHits(0, 1, 8, 3).p_value == pytest.approx(2 * (1 + 9) / 2**9)
    assert PairedHits(5, 0, 0, 5).p_value == 1.0
    assert PairedHits(0, 40_000, 41_000, 0).p_value == pytest.approx(
        math.erfc(999 / math.sqrt(2 * 81_000)), rel=1e-3
    )  # the normal approximation, corrected for continuity


def test_hits_are_counted_row_by_row() -> None:
    a, b = [True, True, False, False, True], [True, False, True, False, False]
    assert PairedHits.count(a, b) == PairedHits(1, 2, 1, 1)


counts = st.integers(0, 60)
tables = st.builds(PairedHits, counts, counts, counts, counts).filter(lambda each: each.num_rows)


@settings(deadline=None, max_examples=200)
@given(tables)
def test_intervals_hold_their_figure_and_turn_with_the_sides(paired: PairedHits) -> None:
    turned = PairedHits(paired.both, paired.only_b, paired.only_a, paired.neither)
    low, high = paired.difference_interval
    assert -1 <= low <= paired.difference <= high <= 1
    assert turned.difference_interval == pytest.approx((-high, -low))
    assert turned.p_value == paired.p_value
    assert 0 < paired.p_value <= 1
    for share in (paired.a, paired.b):
        assert 0 <= share.interval[0] <= share.value <= share.interval[1] <= 1
