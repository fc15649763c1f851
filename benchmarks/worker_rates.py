"""Rates of one worker and of two: how nearly two do twice as much."""

import statistics

MIN_EFFICIENCY = 0.9
WORKERS = (1, 2)
Rates = dict[int, list[float]]  # of something a second, by number of workers


def efficiency(rates: Rates) -> float:
    """The rate of two over twice the rate of one, by medians."""
    return statistics.median(rates[2]) / (2 * statistics.median(rates[1]))
