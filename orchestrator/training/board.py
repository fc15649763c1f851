"""The board: the one actor a gang's workers speak to. Holds events until the controller polls.

A finished or failed task stays known, so that a restarted worker group does not train it again.
"""

from collections.abc import Sequence

from orchestrator.domain.gang import GangEvent, TaskFailed, TaskFinished


class Board:
    """Events in, events out, in order."""

    def __init__(self) -> None:
        self._events: list[GangEvent] = []
        self._ended: set[str] = set()

    def post(self, events: Sequence[GangEvent]) -> None:
        """Take events from a worker; a second end of the same task is dropped."""
        for event in events:
            if isinstance(event, TaskFinished | TaskFailed):
                if event.job_id in self._ended:
                    continue
                self._ended.add(event.job_id)
            self._events.append(event)

    def take(self) -> list[GangEvent]:
        """Hand over everything that came since the last call."""
        events, self._events = self._events, []
        return events

    def ended(self) -> frozenset[str]:
        """Jobs that need no more work."""
        return frozenset(self._ended)
