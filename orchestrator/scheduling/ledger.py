"""Where a controller reads and writes: queue, registry, books; and what it has done so far."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.domain.errors import TuttiError
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.gang_book import GangBook
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry

logger = logging.getLogger("tutti.controller")


@dataclass
class Counters:
    """What a controller has done since it started."""

    admissions: int = 0
    completions: int = 0
    failures: int = 0
    releases: int = 0
    lease_expiries: int = 0
    stale_events: int = 0


@dataclass(frozen=True)
class Ledger:
    """Where keepers write, and by which clock they pace themselves (monotonic seconds; leases live
    by the database's). `discard` removes an artifact that nothing needs any more."""

    queue: JobQueue
    registry: PromptRegistry
    book: GangBook
    batches: BatchBook
    discard: Callable[[str], None]
    actor: str
    lease_s: float
    now: Callable[[], float]
    counters: Counters = field(default_factory=Counters)

    def throw_away(self, digest: str) -> None:
        """Discard an artifact; one that stays costs space alone."""
        try:
            self.discard(digest)
        except TuttiError as error:
            logger.warning("an artifact stays", extra={"digest": digest, "error": str(error)})
