"""How far a batch run is: a line that redraws on a terminal, a line every few seconds elsewhere.

It writes past the log that swallows Ray's noise. Ctrl-C sets `stop`; a second one ends at once.
"""

import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orchestrator.cli.interrupt import interrupts_set
from orchestrator.cli.output import open_screen
from orchestrator.domain.digest import short

if TYPE_CHECKING:
    from orchestrator.batch.progress import Progress

LINE_EVERY_S = 5.0
_CLEAR = "\r\x1b[K"


class BatchView:
    """Shows Progress, and lets the user stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._screen = open_screen()
        self._up = ExitStack()
        self._shown_at = -LINE_EVERY_S
        self._is_drawn = self._is_named = False

    def __enter__(self) -> Self:
        self._up.enter_context(interrupts_set(self.stop))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._up.close()
        if self._is_drawn:
            print(file=self._screen)
        self._screen.close()

    def progress(self, progress: "Progress") -> None:
        """Draw, or say it if that is due."""
        if not self._is_named:
            self._is_named = True
            self.note(f"batch run {short(progress.run_id)}: {progress.total} rows")
        if self._screen.isatty():
            self._is_drawn = True
            print(f"{_CLEAR}{_bar(progress)} {describe(progress)}", end="", file=self._screen)
            self._screen.flush()
            return
        is_end = progress.num_rows == progress.total
        if is_end or time.monotonic() - self._shown_at >= LINE_EVERY_S:
            self._shown_at = time.monotonic()
            print(describe(progress), file=self._screen)

    def note(self, text: str) -> None:
        print(f"{_CLEAR if self._is_drawn else ''}{text}", file=self._screen)


def describe(progress: "Progress") -> str:
    """Progress in words."""
    words = [
        f"{progress.num_rows} of {progress.total} rows",
        f"{progress.num_errors} errors",
        f"{progress.num_tasks} tasks",
    ]
    if progress.rows_per_s:
        words.append(f"{progress.rows_per_s:.1f} rows/s")
    if progress.left_s:
        words.append(f"{_duration(progress.left_s)} left")
    return ", ".join(words)


def _bar(progress: "Progress", width: int = 24) -> str:
    full = width * progress.num_rows // max(1, progress.total)
    return f"[{'#' * full}{'.' * (width - full)}]"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
    )
