"""What the board tells a rank at a step boundary. Values only."""

from dataclasses import dataclass

from orchestrator.domain.gang import TaskOrder


@dataclass(frozen=True)
class Withdrawal:
    """A task that is to leave; if it `keeps`, after a last checkpoint."""

    job_id: str
    epoch: int
    keeps: bool


@dataclass(frozen=True)
class Instructions:
    """For one rank, in this order: who leaves, who is to be saved now (all, if the number of the
    request, `save`, is a new one), who comes. Stopping, all leave and keep what they have."""

    admits: tuple[TaskOrder, ...] = ()
    withdrawals: tuple[Withdrawal, ...] = ()
    save: int = 0
    is_stopping: bool = False
