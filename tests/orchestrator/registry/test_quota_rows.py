"""An owner's quota is set and changed; what is no quota is refused."""

import pytest

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.job import Quota
from orchestrator.registry.job_queue import JobQueue


def test_quota_is_set_and_changed(queue: JobQueue) -> None:
    queue.set_quota("bob", share=2.5)
    queue.set_quota("ann", max_running=3)
    queue.set_quota("ann", max_running=0, share=0.5)
    assert queue.quotas() == [Quota("ann", 0, 0.5), Quota("bob", None, 2.5)]


@pytest.mark.parametrize(
    ("max_running", "share"), [(-1, 1.0), (2**40, 1.0), (1, 0.0), (1, -1.0), (1, float("nan"))]
)
def test_wrong_quota_is_refused(queue: JobQueue, max_running: int, share: float) -> None:
    with pytest.raises(InvalidInput, match="ann: (max_running|the share) is"):
        queue.set_quota("ann", max_running, share)
    assert queue.quotas() == []
