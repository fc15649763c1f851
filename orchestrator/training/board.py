"""The board: the one actor a gang's workers speak to. Holds events until the controller polls.

A finished or failed task stays known, and so does the last checkpoint of each other one: a worker
group that is started again trains nothing twice.
"""

from collections.abc import Sequence

from orchestrator.domain.gang import GangEvent, TaskCheckpointed, TaskFailed, TaskFinished


class Board:
    """Events in, events out, in order."""

    def __init__(self) -> None:
        self._events: list[GangEvent] = []
        self._ended: set[str] = set()
        self._checkpoints: dict[str, str] = {}
        self._is_stopping = False

    def post(self, events: Sequence[GangEvent]) -> None:
        """Take events from a worker; a second end of the same task is dropped."""
        for event in events:
            if isinstance(event, TaskFinished | TaskFailed):
                if event.job_id in self._ended:
                    continue
                self._ended.add(event.job_id)
            elif isinstance(event, TaskCheckpointed):
                self._checkpoints[event.job_id] = event.digest
            self._events.append(event)

    def take(self) -> list[GangEvent]:
        """Hand over everything that came since the last call."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Ask the workers to leave at their next step."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Whether the workers are asked to leave."""
        return self._is_stopping

    def ended(self) -> frozenset[str]:
        """Jobs that need no more work."""
        return frozenset(self._ended)

    def checkpoints(self) -> dict[str, str]:
        """The digest of each job's last checkpoint in this gang."""
        return dict(self._checkpoints)
