import socket
import urllib.request
from datetime import UTC, datetime

import pytest

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.gang_record import GangRecord
from orchestrator.telemetry.metrics import Metrics, Readings, served

NOW = datetime(2026, 1, 2, tzinfo=UTC)
GANG = GangRecord(
    name="gang-1",
    base_fingerprint="f" * 64,
    zero_stage=0,
    sharding="",
    holder="host:1:1",
    stage=None,
    num_workers=2,
    num_jobs=3,
    is_drain_asked=False,
    step_s=0.25,
    tokens_per_s=4000.0,
    error=None,
    started_at=NOW,
    seen_at=NOW,
)
READINGS = Readings(
    queue={"queued": 5, "running": 3},
    oldest_queued_s=12.5,
    gangs=[GANG],
    admissions=8,
    lease_expiries=1,
    finished={"succeeded": 4, "failed": 2},
    outbox_pending=6,
    outbox_oldest_s=30.0,
    is_leading=True,
)
EXPECTED = {
    'tutti_queue_depth{state="queued"} 5.0',
    'tutti_queue_depth{state="running"} 3.0',
    "tutti_oldest_queued_seconds 12.5",
    "tutti_admissions_total 8.0",
    "tutti_lease_expiries_total 1.0",
    'tutti_jobs_finished_total{state="succeeded"} 4.0',
    'tutti_jobs_finished_total{state="failed"} 2.0',
    'tutti_gang_step_seconds{gang="gang-1"} 0.25',
    'tutti_gang_tokens_per_second{gang="gang-1"} 4000.0',
    'tutti_gang_workers{gang="gang-1"} 2.0',
    "tutti_outbox_pending 6.0",
    "tutti_outbox_oldest_seconds 30.0",
    "tutti_controller_leading 1.0",
}


def scrape(port: int) -> set[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line for line in lines if not line.startswith("#")}


def test_a_scrape_of_a_real_port_gives_the_latest_readings() -> None:
    metrics = Metrics()
    with served(metrics, "127.0.0.1", 0) as port:
        before = scrape(port)
        assert "tutti_queue_depth" not in " ".join(before)
        assert "tutti_controller_leading 0.0" in before
        metrics.readings = READINGS
        assert scrape(port) == EXPECTED
        metrics.readings = Readings()
        assert "gang-1" not in " ".join(scrape(port))


def test_the_port_is_free_again_afterwards() -> None:
    with served(Metrics(), "127.0.0.1", 0) as port:
        pass
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_a_port_that_cannot_be_had_is_a_sentence(host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"cannot serve metrics at {host}:{port}: "):
            served(Metrics(), host, port).__enter__()
