"""Keeps a run's lease while its holder works, from a thread of its own, and hears why it is lost.

A database that is away costs nothing until the lease would have ended; then the work is another's.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from orchestrator.domain.errors import StaleLease, TuttiError

BEAT_S = 2.0  # at most: a cancelled run's holder hears of it so soon


class LeaseHeart:
    """`renew` renews the lease, or raises StaleLease; any other TuttiError may pass."""

    def __init__(
        self,
        renew: Callable[[], None],
        lease_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renew, self._lease_s, self._now = renew, lease_s, now
        self._beaten_at = now()
        self._lost: TuttiError | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batch-lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what the lease was lost by."""
        if self._lost is not None:
            raise self._lost

    def beat(self) -> None:
        """One renewal."""
        try:
            self._renew()
            self._beaten_at = self._now()
        except StaleLease as error:
            self._lost = error
        except TuttiError as error:
            if self._now() - self._beaten_at > self._lease_s:
                self._lost = error

    def _run(self) -> None:
        while self._lost is None and not self._stopped.wait(min(BEAT_S, self._lease_s / 4)):
            self.beat()
