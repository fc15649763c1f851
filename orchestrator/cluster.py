"""The Ray cluster this process works on: joined by address, or started here for as long as needed.

While it is up, everything that Ray and the libraries under it print in this process goes to a log
file. Who wants to speak to the user meanwhile keeps a copy of stderr from before.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.domain.errors import ClusterUnavailable

OBJECT_STORE_BYTES = 512 << 20
_QUIET = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor whose warnings nobody here asks for
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@contextmanager
def connected(address: str | None, num_workers: int, log: Path) -> Iterator[None]:
    """Join the cluster at `address`, or start one on loopback with a CPU for every worker.

    Raises ClusterUnavailable when it cannot; leaves the cluster (and ends one it started) on the
    way out.
    """
    if not address:  # else Ray takes 127.0.0.1 for the machine's outer address (ray#59110)
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    with output_to(log):
        try:
            with _own_sigterm():
                if address:
                    ray.init(address=address, log_to_driver=False, namespace="tutti")
                else:
                    ray.init(
                        address="local",
                        num_cpus=max(os.cpu_count() or 1, num_workers),
                        include_dashboard=False,
                        log_to_driver=False,
                        object_store_memory=OBJECT_STORE_BYTES,
                        namespace="tutti",
                        _node_ip_address="127.0.0.1",
                    )
        except Exception as error:  # Ray raises many kinds; each means there is no cluster
            where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
            raise ClusterUnavailable(
                f"cannot reach {where}: {str(error).splitlines()[0] if str(error) else error!r}",
                f"Check TUTTI_RAY_ADDRESS (unset: start one here). Ray's own words: {log}",
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's own answer to SIGTERM, if it has one: ray.init replaces it by an exit."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def num_live_cpus() -> int | None:
    """Processors of the cluster that is joined, as Ray counts them now; None where none is."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0)) if ray.is_initialized() else None


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 of this process to `log` (appended)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    logging.captureWarnings(True)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)
        logging.captureWarnings(False)
