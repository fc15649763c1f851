"""The beat of a process, driven by hand."""

from typing import Any

import pytest

from orchestrator.training.heart import Heart


class Patient:
    """A heart whose process only notes that it was ended."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self.said: list[Any] = []
        self.num_ends = 0
        self._answers = list(answers)
        self.heart = Heart(self.beat, self.end)

    def beat(self, *said: Any) -> str | None:
        self.said.append(said)
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        self.num_ends += 1


def test_a_beat_tells_the_stage_and_what_the_last_step_took() -> None:
    patient = Patient()
    patient.heart.reach("loading")
    patient.heart.reach("training", is_ready=True)
    patient.heart.measure(0.5, 200.0)
    patient.heart.beat_once()
    assert patient.said == [
        ("loading", False, 0.0, 0.0),
        ("training", True, 0.0, 0.0),
        ("training", True, 0.5, 200.0),
    ]
    assert patient.num_ends == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("rank 1 was not heard of for 60 s", "rank 1 was not heard of for 60 s"),
        (ConnectionError("no route"), "the board does not answer: ConnectionError: no route"),
    ],
)
def test_a_process_that_must_end_says_why_and_ends(
    capsys: pytest.CaptureFixture[str], answer: str | Exception, words: str
) -> None:
    patient = Patient(None, answer)
    patient.heart.beat_once()
    assert patient.num_ends == 0
    patient.heart.beat_once()
    assert patient.num_ends == 1
    assert words in capsys.readouterr().out


def test_a_heart_that_was_stopped_ends_nothing() -> None:
    patient = Patient("too late")
    patient.heart.stop()
    patient.heart.beat_once()
    assert patient.num_ends == 0
