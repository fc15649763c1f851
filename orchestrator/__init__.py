"""Tutti: trains, versions, promotes and runs many prompts on one frozen base model.

`from orchestrator import Tutti` is the Python API; `load_from_mlflow` gives its prompts to who
has MLflow alone. Names load on first use, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from orchestrator.code_version import VERSION as __version__

if TYPE_CHECKING:
    from orchestrator.prompt_loading import load_from_mlflow
    from orchestrator.sdk import Tutti

__all__ = ["Tutti", "__version__", "load_from_mlflow"]

_HOMES = {"Tutti": "orchestrator.sdk", "load_from_mlflow": "orchestrator.prompt_loading"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
