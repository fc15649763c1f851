"""What all verbs of the Python API share."""

from orchestrator.bootstrap import Parts
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.settings import Settings

PRODUCTION = "production"


class Verbs:
    """A group of verbs: methods on the parts of one data directory or team database."""

    settings: Settings
    parts: Parts
    _cache_ttl_s: float

    def prompt(self, ref: str) -> PromptVersion:
        """The version of `TASK`, `TASK@7` or `TASK@production`. Raises UnknownName."""
        return self.parts.prompts.resolve(PromptRef.parse(ref))
