"""An order as the board holds it, from its admission to its end; and whether it ends its workers.

Each worker group that is lost counts against all tasks that were on its ranks, until a task gets
past the step at which it was lost: one that ends its workers by what it does never gets there.
"""

from dataclasses import dataclass, field

from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.placement import EVERY_RANK, work_of


@dataclass
class HeldTask:
    """An order that is not done. `ranks` have been told of it; `leaves` once it is to leave.

    `num_losses` worker groups were lost under it, the last one at step `lost_at`. It `has_stepped`
    in the present group. A suspect may be what ended the last one.
    """

    order: TaskOrder
    step: int = 0
    share_done: float = 0.0
    rank: int | None = None
    ranks: set[int] = field(default_factory=set)
    leaves: bool = False
    num_losses: int = 0
    lost_at: int = 0
    has_stepped: bool = False
    is_suspect: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.order.job_id, self.order.epoch

    @property
    def work_left(self) -> float:
        return work_of(self.order) * (1 - self.share_done)

    @property
    def is_in_doubt(self) -> bool:
        """Whether it was lost, and has shown nothing since: not tried yet, or on its trial."""
        if self.leaves or not self.num_losses:
            return False
        return bool(self.ranks) if self.is_suspect else not self.has_stepped

    def lose(self) -> None:
        """Its worker group is lost. Suspect is who made no step in it, and who was lost before."""
        self.num_losses, self.lost_at = self.num_losses + 1, self.step
        self.is_suspect = self.num_losses > 1 or not self.has_stepped

    def reach(self, step: int) -> None:
        """It has made a step in this group."""
        self.step, self.has_stepped = step, True
        if step > self.lost_at:
            self.num_losses, self.is_suspect = 0, False

    def is_on(self, rank: int) -> bool:
        return self.rank in (rank, EVERY_RANK)
