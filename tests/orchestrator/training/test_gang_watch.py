import pytest

from orchestrator.training.gang_watch import cause_of

DEAD = """The actor died unexpectedly before finishing this task.
    Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits."""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError(DEAD), "a worker process or its machine died"),
        (ValueError("first\n  last line  \n\n"), "last line"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ValueError("x" * 1000), "x" * 300),
    ],
)
def test_a_cause_is_one_line_for_people(error: BaseException, cause: str) -> None:
    assert cause_of(error) == cause
