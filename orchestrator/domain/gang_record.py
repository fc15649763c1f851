"""A gang as the database knows it: for the views of other processes than the one that runs it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class GangRecord:
    """One gang, up or ended. `sharding` says why its base is held so, `stage` what start-up stage
    it is in (None: it trains), `num_jobs` how many jobs it has now; `step_s` and `tokens_per_s` are
    of its last steps. Unseen for a lease, it counts as ended, with the reason in `error`."""

    name: str
    base_fingerprint: str
    zero_stage: int
    sharding: str
    holder: str
    stage: str | None
    num_workers: int
    num_jobs: int
    is_drain_asked: bool
    step_s: float
    tokens_per_s: float
    error: str | None
    started_at: datetime
    seen_at: datetime
    ended_at: datetime | None = None
