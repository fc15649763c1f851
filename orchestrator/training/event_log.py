"""What a board has to tell, in order, until its driver takes it."""

from orchestrator.domain.gang import GangEvent, StageReached, TaskProgress


class EventLog:
    """Of a task's progress that nobody took, and that nothing of the task came after, the latest is
    enough."""

    def __init__(self) -> None:
        self._events: list[GangEvent] = []
        self._last_of: dict[tuple[str, int], int] = {}  # where each task's last event stands

    def add(self, event: GangEvent) -> None:
        if isinstance(event, StageReached):
            self._events.append(event)
            return
        key = (event.job_id, event.epoch)
        last = self._last_of.get(key, -1)
        is_newer = isinstance(event, TaskProgress) and last >= 0
        if is_newer and isinstance(self._events[last], TaskProgress):
            self._events[last] = event
            return
        self._last_of[key] = len(self._events)
        self._events.append(event)

    def take(self) -> tuple[GangEvent, ...]:
        """Everything that came since the last call."""
        events, self._events, self._last_of = self._events, [], {}
        return tuple(events)
