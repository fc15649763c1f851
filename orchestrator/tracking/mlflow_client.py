"""Opens an MLflow client: silent, without telemetry or pickles, and quick to give up."""

import importlib
import logging
import os
import re
import sqlite3
from typing import Any

#: The user's own values win over these.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # MLflow's client sends a POST again whose answer was lost, and so makes a run twice. Here what
    # failed is tried again from the outbox, which looks first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_FORCED = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
_NOISY = ("mlflow", "alembic", "urllib3.connectionpool")
_DATABASE_TRIES = 2


def open_client(tracking_uri: str) -> Any:
    """An MlflowClient. Importing MLflow takes about 2 s; no request is made yet."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_FORCED)
    mlflow: Any = importlib.import_module("mlflow")
    for logger in _NOISY:
        logging.getLogger(logger).setLevel(logging.ERROR)
    if is_database(tracking_uri):
        # MLflow tries a database that cannot be opened 10 times, over 101 s, without a setting.
        database: Any = importlib.import_module("mlflow.store.db.utils")
        database.MAX_RETRY_COUNT = _DATABASE_TRIES
    return mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)


def is_database(tracking_uri: str) -> bool:
    """Whether MLflow runs here, on a database of its own, and not on a server."""
    return re.match(r"(sqlite|postgresql|mysql|mssql)\b", tracking_uri) is not None


def explain(error: Exception, tracking_uri: str) -> str:
    """One line, without passwords: where MLflow is, and what it, or the way to it, said."""
    reasons = (str(error).strip() or type(error).__name__).splitlines()
    text = f"MLflow at {tracking_uri}: {_root_reason(error) or reasons[0][:300]}"
    return without_password(text)


def without_password(text: str) -> str:
    """`text` without the user:password@ of any URL in it."""
    return re.sub(r"//[^@/\s]*@", "//", text)


def _root_reason(error: BaseException) -> str:
    """What the network or the disk said, below the layers that wrapped it; else nothing."""
    reason = ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError | sqlite3.Error):
            reason = getattr(cause, "strerror", None) or str(cause) or reason
        cause = cause.__cause__ or cause.__context__
    return reason.partition("\n")[0][:300]
