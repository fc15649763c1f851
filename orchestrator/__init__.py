"""Tutti: trains, versions, promotes and runs many prompts on one frozen base model.

`from orchestrator import Tutti` is the Python API; it is loaded on first use so that importing
this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

from orchestrator.code_version import VERSION as __version__

if TYPE_CHECKING:
    from orchestrator.sdk import Tutti

__all__ = ["Tutti", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Tutti":
        from orchestrator.sdk import Tutti

        return Tutti
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
