"""The Python API: one class, the same verbs as the command line, in a file for each topic."""

from orchestrator.sdk.train_verbs import Submitted
from orchestrator.sdk.tutti import Tutti

__all__ = ["Submitted", "Tutti"]
