"""The table of a live view: the jobs of one Sight, those at work first where there are too many."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.domain.gang_record import GangRecord
from orchestrator.domain.job import Job, JobState

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.job_watch import Sight

MAX_ROWS = 40


def draw_jobs(sight: "Sight", seconds: float) -> "Table":
    """The table, `seconds` after the view began."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table(title=_title(sight, seconds), title_justify="left", header_style="bold")
    for column in ("task", "state", "", "step", "loss", "best", "left"):
        justify = "right" if column in ("step", "loss", "best", "left") else "left"
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for job in _shown_first(sight.jobs):
        step, steps = steps_of(job)
        loss, best = job.progress.get("loss"), job.progress.get("best")
        table.add_row(
            job.task,
            _state(job),
            ProgressBar(total=steps, completed=step, width=20),
            f"{step}/{steps}",
            f"{loss:.3f}" if loss is not None else "",
            f"{best:.3f}" if best is not None else "",
            "" if job.state.is_terminal else time_left(job.progress),
        )
    return table


def steps_of(job: Job) -> tuple[int, int]:
    """How many of its steps a job has done, and how many there are."""
    num_steps = int(job.progress.get("num_steps", job.submission.spec.training.steps))
    is_unseen = job.state == JobState.SUCCEEDED and not job.progress
    return (num_steps if is_unseen else int(job.progress.get("step", 0))), num_steps


def time_left(progress: Mapping[str, Any]) -> str:
    """How long the rest takes at the pace so far; empty before the first step."""
    step, seconds = progress.get("step", 0), progress.get("seconds", 0.0)
    if step == 0 or not seconds:
        return ""
    left = seconds / step * (progress["num_steps"] - step)
    return f"{left // 60:.0f}:{left % 60:02.0f}"


def gangs_of(sight: "Sight") -> list[GangRecord]:
    """The gangs that have one of the jobs."""
    names = {job.gang for job in sight.jobs}
    return [gang for gang in sight.gangs if gang.name in names]


def stage_of(gang: GangRecord) -> str:
    """What a gang does: its start-up stage, or how it trains."""
    if gang.stage is not None:
        return gang.stage
    workers = f"{gang.num_workers} {'worker' if gang.num_workers == 1 else 'workers'}"
    return f"{workers}, {gang.step_s:.2f} s a step" if gang.step_s else workers


def _title(sight: "Sight", seconds: float) -> str:
    stages = sorted({stage_of(gang) for gang in gangs_of(sight)}) or ["waiting for a gang"]
    title = f"training {len(sight.jobs)} tasks together · {seconds:.0f} s · {', '.join(stages)}"
    if len(sight.jobs) > MAX_ROWS:
        num_ended = sum(job.state.is_terminal for job in sight.jobs)
        title += f" · {num_ended} have ended, {MAX_ROWS} are shown"
    return title


def _state(job: Job) -> str:
    if job.state.is_terminal or not job.progress or job.state == JobState.QUEUED:
        return job.state.value
    return str(job.progress.get("stage", job.state.value))


def _shown_first(jobs: Sequence[Job]) -> list[Job]:
    """As many jobs as a table takes: all in their order, else those at work first."""
    if len(jobs) <= MAX_ROWS:
        return list(jobs)
    at_work = (JobState.RUNNING, JobState.ADMITTED, JobState.QUEUED)
    ranks = {state: rank for rank, state in enumerate(at_work)}
    return sorted(jobs, key=lambda job: ranks.get(job.state, len(ranks)))[:MAX_ROWS]
