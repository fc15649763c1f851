"""What planning may decide about gangs and jobs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GangKey:
    """What jobs of a gang have in common. `zero_stage` is None where neither spec nor setting
    says one: the base's size does. A trial is a gang for jobs that may have ended others: it is
    given one of them at a time."""

    base_fingerprint: str
    zero_stage: int | None
    shares_rows: bool = False
    is_trial: bool = False


@dataclass(frozen=True)
class StartGang:
    """Start a gang and admit these jobs."""

    key: GangKey
    num_workers: int
    job_ids: tuple[str, ...]


@dataclass(frozen=True)
class AdmitJobs:
    """Admit these jobs to a gang that is up."""

    gang: str
    job_ids: tuple[str, ...]


@dataclass(frozen=True)
class WithdrawJob:
    """Put a job of a gang back into the queue, with its checkpoint."""

    gang: str
    job_id: str
    reason: str


@dataclass(frozen=True)
class CloseGang:
    """Admit nothing more; the gang ends with its last job."""

    gang: str
    reason: str


@dataclass(frozen=True)
class DrainGang:
    """Put the gang's jobs back into the queue, with their checkpoints, and end it."""

    gang: str
    reason: str


Decision = StartGang | AdmitJobs | WithdrawJob | CloseGang | DrainGang
