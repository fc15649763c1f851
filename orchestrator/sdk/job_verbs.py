"""Jobs and gangs that are there."""

from collections.abc import Sequence
from datetime import datetime

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.gang_record import GangRecord
from orchestrator.domain.job import Attempt, Job, JobState, LogLine, Quota
from orchestrator.log_archive import read_log
from orchestrator.sdk.verbs import Verbs

MAX_JOBS = 100_000


class JobVerbs(Verbs):
    """Jobs, quotas and gangs: seen and steered."""

    def jobs(
        self,
        states: Sequence[JobState] | None = None,
        task: str | None = None,
        owner: str | None = None,
        limit: int = 100,
        array: str | None = None,
    ) -> list[Job]:
        """Jobs, the newest first."""
        return list(self.parts.jobs.list(states, task, owner, limit, array))

    def array(self, name: str) -> list[Job]:
        """The jobs of an array, by trial. Raises UnknownName."""
        jobs = self.jobs(limit=MAX_JOBS, array=name)
        if not jobs:
            raise UnknownName(f"there is no array {name}", "`tutti jobs list` names arrays.")
        return sorted(
            jobs, key=lambda job: job.submission.place.index if job.submission.place else 0
        )

    def job(self, job_id: str) -> Job:
        """By its id or the start of it. Raises UnknownName."""
        return self.parts.jobs.get(job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        """A job's attempts, first to last, each with its cause and whose fault that was."""
        return list(self.parts.jobs.attempts(job_id))

    def logs(self, job_id: str, after: int = 0) -> list[LogLine]:
        """What happened to a job: the lines with numbers above `after`. Needs no cluster."""
        return read_log(self.parts.jobs, self.parts.artifacts, self.job(job_id).id, after)

    def now(self) -> datetime:
        """The time that jobs go by: the database's."""
        return self.parts.jobs.now()

    def cancel(self, job_id: str) -> Job:
        return self.parts.jobs.cancel(job_id, self.parts.actor)

    def pause(self, job_id: str) -> Job:
        """A queued job pauses at once, a running one with a checkpoint at its next step."""
        return self.parts.jobs.pause(job_id, self.parts.actor)

    def resume(self, job_id: str) -> Job:
        return self.parts.jobs.resume(job_id, self.parts.actor)

    def retry(self, job_id: str, time_limit_s: float | None = None) -> Job:
        """Queue a failed or cancelled job again; it goes on from its last checkpoint, under the new
        time limit if one is given: one that its time limit ended needs a higher one."""
        return self.parts.jobs.retry(job_id, self.parts.actor, time_limit_s)

    def set_priority(self, job_id: str, priority: int) -> Job:
        return self.parts.jobs.set_priority(job_id, priority, self.parts.actor)

    def quotas(self) -> list[Quota]:
        return list(self.parts.jobs.quotas())

    def set_quota(self, quota: Quota) -> None:
        self.parts.jobs.set_quota(quota.owner, quota.max_running, quota.share)

    def gangs(self, include_ended: bool = False, limit: int = 100) -> list[GangRecord]:
        return list(self.parts.gangs.list(include_ended, limit))

    def drain(self, gang: str) -> None:
        """Ask a gang to end; its jobs go back to the queue. Raises UnknownName."""
        self.parts.gangs.ask_drain(gang)

    def leader(self) -> str | None:
        """The holder name of the controller that leads, if one does."""
        leader = self.parts.leadership.leader()
        return leader.holder if leader and not leader.is_expired else None
