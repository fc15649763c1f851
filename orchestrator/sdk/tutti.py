"""The Python API: one class, the same verbs as the command line.

with Tutti() as tutti:
    tutti.add_base("smollm2-135m", Path("..."))
    tutti.train([Path("examples/tasks/country-continent.yaml")])
    print(tutti.prompt("country-continent@production").metrics)
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.bootstrap import Parts
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.sdk.evaluation_verbs import EvaluationVerbs
from orchestrator.sdk.job_verbs import JobVerbs
from orchestrator.sdk.mlflow_verbs import MlflowVerbs
from orchestrator.sdk.promotion_verbs import PromotionVerbs
from orchestrator.sdk.prompt_verbs import PromptVerbs
from orchestrator.sdk.train_verbs import TrainVerbs
from orchestrator.sdk.upkeep_verbs import UpkeepVerbs
from orchestrator.settings import Settings, read_settings


class Tutti(
    TrainVerbs,
    JobVerbs,
    PromptVerbs,
    MlflowVerbs,
    PromotionVerbs,
    EvaluationVerbs,
    UpkeepVerbs,
):
    """One data directory (or team database) and everything that can be done with it."""

    def __init__(
        self, settings: Settings | None = None, *, cache_ttl_s: float | None = None
    ) -> None:
        """Nothing is opened before it is needed. `cache_ttl_s`, in place of the setting: seconds
        that `load` goes by its own copy."""
        self.settings = settings or read_settings()
        self.parts = Parts(self.settings)
        self._cache_ttl_s = self.settings.cache_ttl_s if cache_ttl_s is None else cache_ttl_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.parts.close()

    # Base models

    def add_base(
        self, name: str, path: Path, gguf: str | None = None, replace: bool = False
    ) -> tuple[BaseModelRecord, bool]:
        """Register a transformers folder (or a GGUF file in it) as base `name`.

        Returns the record, and False when it was there already. Raises InvalidModelFolder.
        """
        record = self.parts.base_store.add(name, path, gguf)
        return self.parts.bases.add(record, replace)

    def bases(self) -> list[BaseModelRecord]:
        return list(self.parts.bases.list())

    def base(self, name: str) -> BaseModelRecord:
        return self.parts.bases.get(name)
