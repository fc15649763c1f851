"""`tutti controller`: trains what is queued for as long as it runs."""

import logging
import threading
from contextlib import ExitStack

import click

from orchestrator.cli.interrupt import interrupts_set
from orchestrator.cli.output import open_screen

logger = logging.getLogger("tutti.controller")


@click.command("controller")
@click.option("--once-idle", is_flag=True, help="End when no job waits or runs any more.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65_535), help="Serve Prometheus metrics (0: any port)."
)
@click.option(
    "--metrics-host", default="127.0.0.1", show_default=True, help="Where metrics are served."
)
def command(once_idle: bool, metrics_port: int | None, metrics_host: str) -> None:
    """Train what is queued, until SIGTERM or Ctrl-C.

    Several may run on one database: one leads, another takes over when it is gone. The log goes to
    stderr, as JSON unless that is a terminal. Ended by a signal, it puts its jobs back into the
    queue, with checkpoints.
    """
    from orchestrator.sdk import Tutti
    from orchestrator.telemetry.json_log import logged_to
    from orchestrator.telemetry.metrics import Metrics, served

    stop, metrics = threading.Event(), Metrics()
    with ExitStack() as up:
        up.enter_context(interrupts_set(stop))
        up.enter_context(logged_to(up.enter_context(open_screen())))
        tutti = up.enter_context(Tutti())
        if metrics_port is not None:
            port = up.enter_context(served(metrics, metrics_host, metrics_port))
            logger.info("metrics", extra={"url": f"http://{metrics_host}:{port}/metrics"})
        logger.info("the controller is up", extra={"logs": tutti.settings.logs})
        tutti.serve(stop, once_idle, metrics)
        logger.info("the controller has ended")
