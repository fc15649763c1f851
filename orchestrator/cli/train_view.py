"""The live view of a training: a table that redraws on a terminal, a line an event elsewhere.

It writes past the log that swallows Ray's and DeepSpeed's noise, and names that log's folder.
"""

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orchestrator.cli.output import open_screen
from orchestrator.domain.gang import TaskProgress
from orchestrator.domain.job import Job, JobState

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from orchestrator.scheduling.controller import Watch


class TrainView:
    """Shows what a controller's Watch holds."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._live: Live | None = None
        self._told: dict[str, object] = {}
        self._finished: set[str] = set()
        self._started = time.monotonic()
        self._screen = open_screen()
        self._is_terminal = self._screen.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._screen.close()

    def show(self, jobs: list[Job], watch: "Watch") -> None:
        """Draw, or say what is new."""
        if not self._told:
            self._say("logs", f"logs of Ray, DeepSpeed and the workers: {self._logs}")
        if self._is_terminal:
            self._draw(jobs, watch)
        else:
            self._tell(jobs, watch)
        for job in jobs:
            if job.id in watch.completions and job.id not in self._finished:
                self._finished.add(job.id)
                self._tell_end(job, watch)

    def has_news(self, job: Job) -> bool:
        """Whether the job ended while this view looked on."""
        return job.id in self._finished

    def _tell(self, jobs: list[Job], watch: "Watch") -> None:
        for rank, stage in watch.stages.items():
            self._say(f"rank {rank}", f"worker {rank}: {stage}")
        for job in jobs:
            progress = watch.progress.get(job.id)
            if progress is not None and progress.best is not None:
                text = f"{job.task}: step {progress.step}/{progress.num_steps}"
                text += f" loss {progress.loss:.3f} best {progress.best:.3f}"
                text += f", {progress.stage}" if progress.stage != "training" else ""
                self._say(job.id, text, (progress.best, progress.stage, progress.step // 20))
        for job_id, reason in watch.failures.items():
            self._say(f"failed {job_id}", f"{job_id[:12]}: failed: {reason}")

    def _tell_end(self, job: Job, watch: "Watch") -> None:
        completion = watch.completions[job.id]
        version = completion.version
        metric = str(version.config["metric"])
        text = f"{version.ref}: {metric} {version.metrics.get(metric, float('nan')):.3f}"
        if completion.promotion is not None:
            text += f", now {completion.promotion.alias}"
        for refusal in completion.refusals:
            text += f", not promoted: {refusal}"
        if not completion.created:
            text += ", the same content as before: no new version"
        self._say(f"end {job.id}", text)

    def _say(self, key: str, text: str, state: object = None) -> None:
        """Write a line once for each state of a key."""
        state = text if state is None else state
        if self._told.get(key) == state:
            return
        self._told[key] = state
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(f"[{time.monotonic() - self._started:5.0f}s] {text}", file=self._screen)

    def _draw(self, jobs: list[Job], watch: "Watch") -> None:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=self._screen, force_terminal=True), auto_refresh=False
            )
            self._live.start()
        self._live.update(self._table(jobs, watch), refresh=True)

    def _table(self, jobs: list[Job], watch: "Watch") -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        seconds = time.monotonic() - self._started
        stages = sorted(set(watch.stages.values())) or ["starting Ray workers"]
        title = f"training {len(jobs)} tasks together · {seconds:.0f} s · {', '.join(stages)}"
        table = Table(title=title, title_justify="left", header_style="bold", expand=False)
        for column in ("task", "state", "", "step", "loss", "best", "left"):
            justify = "right" if column in ("step", "loss", "best", "left") else "left"
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for job in jobs:
            seen = watch.progress.get(job.id)
            steps = seen.num_steps if seen else job.submission.spec.training.steps
            step = seen.step if seen else 0
            if job.state == JobState.SUCCEEDED and seen is None:
                step = steps
            table.add_row(
                job.task,
                seen.stage if seen and not job.state.is_terminal else job.state.value,
                ProgressBar(total=steps, completed=step, width=20),
                f"{step}/{steps}",
                f"{seen.loss:.3f}" if seen and seen.loss is not None else "",
                f"{seen.best:.3f}" if seen and seen.best is not None else "",
                "" if job.state.is_terminal else time_left(seen),
            )
        return table


def time_left(progress: TaskProgress | None) -> str:
    """How long the rest takes at the pace so far; empty before the first step."""
    if progress is None or progress.step == 0:
        return ""
    left = progress.seconds / progress.step * (progress.num_steps - progress.step)
    return f"{left // 60:.0f}:{left % 60:02.0f}"
