"""The MLflow server: on loopback, its runs in SQLite, its artifacts in a folder and served."""

import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from deploy.local.processes import Service

NAME = "mlflow"
QUIET = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a worker pool of its own for nothing here
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def service(
    data: Path, port: int, env: Mapping[str, str], backend_url: str | None = None
) -> Service:
    """A server of the runs and artifacts in `data`, or of the runs at `backend_url`."""
    data.mkdir(exist_ok=True)
    command = (
        str(Path(sys.executable).with_name("mlflow")), "server",
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", backend_url or f"sqlite:///{data / 'mlflow.db'}",
        "--artifacts-destination", str(data / "artifacts"), "--serve-artifacts",
    )  # fmt: skip
    return Service(NAME, command, {**env, **QUIET}, lambda _, __: _answers(port))


def _answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url(port)}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
