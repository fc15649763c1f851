"""Opens an MLflow client: silent, without telemetry or pickles, and quick to give up."""

import importlib
import logging
import os
import re
from typing import Any

#: The user's own values win over these.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
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
    if not tracking_uri.startswith("http"):
        # MLflow tries a database that cannot be opened 10 times, over 101 s, without a setting.
        database: Any = importlib.import_module("mlflow.store.db.utils")
        database.MAX_RETRY_COUNT = _DATABASE_TRIES
    return mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)


def explain(error: Exception, tracking_uri: str) -> str:
    """One line: where MLflow is (no password in it) and what it, or the way to it, said."""
    place = re.sub(r"//[^@/]*@", "//", tracking_uri)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"MLflow at {place}: {reason[:300]}"
