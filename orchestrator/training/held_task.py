"""An order as the board holds it, from its admission to its end."""

from dataclasses import dataclass, field

from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.placement import EVERY_RANK, work_of


@dataclass
class HeldTask:
    """An order that is not done. `ranks` have been told of it; `leaves` once it is to leave."""

    order: TaskOrder
    step: int = 0
    share_done: float = 0.0
    rank: int | None = None
    ranks: set[int] = field(default_factory=set)
    leaves: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.order.job_id, self.order.epoch

    @property
    def work_left(self) -> float:
        return work_of(self.order) * (1 - self.share_done)

    def is_on(self, rank: int) -> bool:
        return self.rank in (rank, EVERY_RANK)
