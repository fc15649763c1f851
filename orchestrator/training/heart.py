"""Tells the board every second that this process lives, whatever its training thread does.

The board's answer may be that the process must end: it then ends at once, even while its training
thread hangs in a collective call that a lost peer will never join.
"""

import os
import sys
import threading
from collections.abc import Callable

BEAT_S = 1.0
ABORTED = 17  # the exit status of a process that ended itself so


def _exit() -> None:
    os._exit(ABORTED)


class Heart:
    """`beat` is called with stage, whether the start-up is over, seconds a step and tokens a
    second; what it answers or raises ends the process by `end`."""

    def __init__(
        self,
        beat: Callable[[str, bool, float, float], str | None],
        end: Callable[[], None] = _exit,
    ) -> None:
        self._beat, self._end = beat, end
        self._said: tuple[str, bool, float, float] = ("", False, 0.0, 0.0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; the board may end before this process."""
        self._stopped.set()

    def reach(self, stage: str, is_ready: bool = False) -> None:
        """Tell a stage of the start-up, at once."""
        self._said = (stage, is_ready, 0.0, 0.0)
        self.beat_once()

    def measure(self, step_s: float, tokens_per_s: float) -> None:
        """Note what the last step took; the next beat tells it."""
        self._said = (*self._said[:2], step_s, tokens_per_s)

    def beat_once(self) -> None:
        """One beat; ends the process if it is told to, or if nobody answers."""
        try:
            reason = self._beat(*self._said)
        except Exception as error:  # whatever keeps the board from answering, it is gone
            reason = f"the board does not answer: {type(error).__name__}: {error}"
        if reason is not None and not self._stopped.is_set():
            print(f"this process ends at once: {reason}", flush=True)
            sys.stderr.flush()
            self._end()

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_S):
            self.beat_once()
