"""The worker groups that a gang has lost: why, whether they came to anything, and what follows.

A group that was lost without a step counts, until one comes to something. After a loss all tasks
are saved at the first step and then more and more seldom, so that each group brings them on though
it be lost too.
"""

import math
from collections.abc import Callable

#: Worker groups in a row that may be started again though the one before made no step.
MAX_FRUITLESS_RESTARTS = 3
#: Between the first save after a loss and the second; twice as long before each further one.
SAVE_PAUSE_S = 5.0


class Losses:
    """`reason` says why the present group is lost, empty while it is not."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.reason = ""
        self._num_fruitless, self._has_progressed = 0, False
        self._save_from, self._save_pause_s = math.inf, SAVE_PAUSE_S

    def progress(self) -> None:
        """The group comes to something."""
        self._has_progressed = True

    def is_save_due(self) -> bool:
        """Whether all tasks are to be saved at this step; True is said once."""
        if self._now() < self._save_from:
            return False
        self._save_from = self._now() + self._save_pause_s
        self._save_pause_s *= 2
        return True

    def start_again(self) -> str | None:
        """Another group takes the place of this one; an answer says why none shall."""
        if self._has_progressed:
            self._num_fruitless = 0
        elif self.reason:
            self._num_fruitless += 1
        if self.reason:
            self._save_from, self._save_pause_s = self._now(), SAVE_PAUSE_S
        reason, self.reason, self._has_progressed = self.reason, "", False
        if self._num_fruitless <= MAX_FRUITLESS_RESTARTS:
            return None
        return (
            f"its workers were lost {self._num_fruitless} times in a row without a step; "
            f"the last time: {reason}"
        )
