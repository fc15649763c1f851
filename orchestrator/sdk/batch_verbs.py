"""Batch runs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.sdk.verbs import PRODUCTION, Verbs

if TYPE_CHECKING:
    from orchestrator.inference.batch_run import BatchResult


class BatchVerbs(Verbs):
    """Files of rows answered by many prompts."""

    def batch(
        self,
        input_path: Path,
        output_path: Path,
        alias: str = PRODUCTION,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "BatchResult":
        """Answer a JSONL file of mixed tasks; one output line for each input line, in order."""
        from orchestrator.batch_request import answer_file

        progress = on_progress or (lambda *_: None)
        return answer_file(self.parts, input_path, output_path, alias, progress)
