"""A controller's figures for Prometheus, made anew from the latest readings at every scrape.

A gang that has ended is not in the next readings, and so not in the next scrape.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.gang_record import GangRecord


@dataclass(frozen=True)
class Readings:
    """What there is to tell at one time. `queue` counts jobs by state; the counters are of this
    controller since it started."""

    queue: Mapping[str, int] = field(default_factory=dict)
    oldest_queued_s: float = 0.0
    gangs: Sequence[GangRecord] = ()
    admissions: int = 0
    lease_expiries: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)
    outbox_pending: int = 0
    outbox_oldest_s: float = 0.0
    is_leading: bool = False


class Metrics(Collector):
    """Holds the latest readings; whoever reads them sets `readings`."""

    def __init__(self) -> None:
        self.readings = Readings()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        now = self.readings
        yield _gauge("tutti_queue_depth", "Jobs by state.", "state", now.queue)
        yield GaugeMetricFamily(
            "tutti_oldest_queued_seconds", "Age of the oldest queued job.", now.oldest_queued_s
        )
        yield CounterMetricFamily("tutti_admissions", "Jobs given to gangs.", now.admissions)
        yield CounterMetricFamily(
            "tutti_lease_expiries", "Jobs taken back from lost holders.", now.lease_expiries
        )
        yield _finished(now.finished)
        steps = {gang.name: gang.step_s for gang in now.gangs}
        yield _gauge("tutti_gang_step_seconds", "Time of a training step.", "gang", steps)
        tokens = {gang.name: gang.tokens_per_s for gang in now.gangs}
        yield _gauge("tutti_gang_tokens_per_second", "Positions computed.", "gang", tokens)
        workers = {gang.name: gang.num_workers for gang in now.gangs}
        yield _gauge("tutti_gang_workers", "Workers that have joined.", "gang", workers)
        yield GaugeMetricFamily(
            "tutti_outbox_pending", "Facts that MLflow has not heard.", now.outbox_pending
        )
        yield GaugeMetricFamily(
            "tutti_outbox_oldest_seconds", "Age of the oldest of them.", now.outbox_oldest_s
        )
        yield GaugeMetricFamily(
            "tutti_controller_leading", "1 if this controller leads.", int(now.is_leading)
        )


@contextmanager
def served(metrics: Metrics, host: str, port: int) -> Iterator[int]:
    """Serve `metrics` at http://host:port/metrics; port 0 takes a free one. Gives the port."""
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except (OSError, OverflowError) as error:
        raise InvalidInput(
            f"cannot serve metrics at {host}:{port}: {error}",
            "Give --metrics-port another port, or --metrics-host an address of this machine.",
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _finished(counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily("tutti_jobs_finished", "Jobs that ended here.", labels=["state"])
    for state, count in counts.items():
        family.add_metric([state], count)
    return family
