import pytest

from orchestrator.cli.train_view import time_left
from orchestrator.domain.gang import TaskProgress


@pytest.mark.parametrize(
    ("step", "seconds", "expected"),
    [(0, 0.0, ""), (10, 10.0, "1:30"), (50, 10.0, "0:10"), (100, 10.0, "0:00"), (1, 60.0, "99:00")],
)
def test_the_time_left_is_at_the_pace_so_far(step: int, seconds: float, expected: str) -> None:
    assert time_left(TaskProgress("j", step, 100, seconds=seconds)) == expected


def test_nothing_is_known_before_the_first_word() -> None:
    assert time_left(None) == ""
