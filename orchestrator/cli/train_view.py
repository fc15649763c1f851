"""The live view of jobs: a table that redraws on a terminal, a line an event elsewhere.

All it shows comes from the database, so it is the same whoever trains. It writes past the log that
swallows Ray's and DeepSpeed's noise, and names that log's folder.
"""

import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from orchestrator.cli.output import open_screen
from orchestrator.cli.train_table import draw_jobs, gangs_of, stage_of
from orchestrator.domain.job import Job, JobState
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.holder import is_here, place

if TYPE_CHECKING:
    from rich.live import Live

    from orchestrator.job_watch import Sight

NOBODY_LEADS = "no controller is up: the jobs wait until one is started (`tutti controller`)"


class TrainView:
    """Shows Sights. `resolve` gives the version of TASK@1; `logs` is the folder to name, if any;
    `follows` says whether every line of the jobs' logs is told, or of those alone that were tried
    more than once; `known` are jobs whose end is told already."""

    def __init__(
        self,
        resolve: Callable[[str], PromptVersion],
        logs: Path | None = None,
        follows: bool = False,
        known: Collection[str] = (),
    ) -> None:
        self._resolve, self._logs, self._follows = resolve, logs, follows
        self._live: Live | None = None
        self._told: dict[str, object] = {}
        self._finished = set(known)
        self._known = frozenset(known)
        self._started = time.monotonic()
        self._screen = open_screen()
        self.is_terminal = self._screen.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_drawing()
        self._screen.close()

    def show(self, sight: "Sight") -> None:
        """Draw, or say what is new."""
        if self._logs is not None:
            self._say("logs", f"logs of Ray, DeepSpeed and the workers: {self._logs}")
        self.tell_state(sight)
        for job, line in sight.lines:
            if self._follows or job.attempts > 1 or job.faults:
                self._say(f"line {line.number}", f"{job.task}: {line.text}")
        if self.is_terminal:
            self._draw(sight)
        else:
            self._tell(sight)
        for job in sight.jobs:
            if job.state.is_terminal and job.id not in self._finished:
                self._finished.add(job.id)
                self._say(f"end {job.id}", self._end(job))

    def has_news(self, job: Job) -> bool:
        """Whether the job ended while this view looked on."""
        return job.id in self._finished - self._known

    def ask(self, question: str) -> str:
        """Stop drawing, ask, and return the answer; empty when there is none to be had."""
        self._stop_drawing()
        self._screen.write(f"{question} ")
        self._screen.flush()
        return sys.stdin.readline().strip().lower()

    def tell_state(self, sight: "Sight") -> None:
        """Say who trains, or why nobody can."""
        if all(job.state.is_terminal for job in sight.jobs):
            return
        if sight.error is not None:
            self._say("database", f"the database is away, waiting: {sight.error}")
            return
        self._told.pop("database", None)
        if sight.leader is None:
            self._say("leader", NOBODY_LEADS)
        elif not is_here(sight.leader):
            self._say("leader", f"trained by the controller at {place(sight.leader)}")

    def _tell(self, sight: "Sight") -> None:
        for gang in gangs_of(sight):
            self._say(f"held {gang.name}", f"{gang.name}: {gang.sharding}" if gang.sharding else "")
            self._say(gang.name, f"{gang.name}: {stage_of(gang)}", gang.stage or gang.num_workers)
        for job in sight.jobs:
            progress = job.progress
            if progress.get("best") is not None and job.id not in self._known:
                self._say(job.id, _line(job), _moment(progress))

    def _end(self, job: Job) -> str:
        if job.state != JobState.SUCCEEDED:
            reason = f": {job.error}" if job.error else ""
            return f"{job.task}: {job.state}{reason}"
        version = self._resolve(f"{job.task}@{job.version}")
        metric = str(version.config["metric"])
        text = f"{version.ref}: {metric} {version.metrics.get(metric, float('nan')):.3f}"
        if job.outcome.get("alias"):
            text += f", now {job.outcome['alias']}"
        for refusal in job.outcome.get("refusals", ()):
            text += f", not promoted: {refusal}"
        if not job.outcome.get("created", True):
            text += ", the same content as before: no new version"
        return text

    def _say(self, key: str, text: str, state: object = None) -> None:
        """Write a line once for each state of a key."""
        state = text if state is None else state
        if self._told.get(key) == state:
            return
        self._told[key] = state
        if not text:
            return
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(f"[{time.monotonic() - self._started:5.0f}s] {text}", file=self._screen)

    def _draw(self, sight: "Sight") -> None:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=self._screen, force_terminal=True), auto_refresh=False
            )
            self._live.start()
        seconds = time.monotonic() - self._started
        self._live.update(draw_jobs(sight, seconds), refresh=True)

    def _stop_drawing(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _line(job: Job) -> str:
    progress = job.progress
    text = f"{job.task}: step {progress['step']}/{progress['num_steps']}"
    if progress.get("loss") is not None:
        text += f" loss {progress['loss']:.3f}"
    stage = progress.get("stage", "training")
    return f"{text} best {progress['best']:.3f}" + (f", {stage}" if stage != "training" else "")


def _moment(progress: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must change for a new line."""
    return progress["best"], progress.get("stage"), progress["step"] // 20
