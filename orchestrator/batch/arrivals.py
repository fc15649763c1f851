"""What a slow iterator gives, without waiting for it: it is walked in a thread of its own.

A thread cannot be ended: who leaves in the middle leaves it behind, and what the iterator hangs on
(a cluster connection) ends it.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Arrivals(Generic[T]):
    """Items of an iterator as they arrive."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._arrived: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._end: _End | None = None
        threading.Thread(target=self._walk, name="batch-shards", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether everything was taken, and the iterator raised nothing."""
        return self._end is not None and self._end.error is None

    def take(self, wait_s: float) -> list[T]:
        """All that is there, after waiting for the first up to `wait_s`. What the iterator raised
        is raised here, once all before it was taken."""
        taken: list[T] = []
        while self._end is None:
            try:
                item = self._arrived.get(timeout=0 if taken else wait_s)
            except queue.Empty:
                break
            if isinstance(item, _End):
                self._end = item
            else:
                taken.append(item)
        if not taken and self._end is not None and self._end.error is not None:
            raise self._end.error
        return taken

    def _walk(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                self._arrived.put(item)
        except BaseException as raised:  # handed over to whoever takes
            error = raised
        self._arrived.put(_End(error))


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
