"""What came of batch runs: reports, and evaluations by runs of their own."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.domain.batch import BatchMode, BatchSettings, Decoding
from orchestrator.domain.errors import InvalidInput
from orchestrator.sdk.batch_verbs import BatchVerbs

if TYPE_CHECKING:
    from orchestrator.batch.run import Pool, Watch
    from orchestrator.batch_report.batch_report import BatchReport
    from orchestrator.domain.prompt_version import PromptVersion
    from orchestrator.questions.evaluation import Evaluation, Finished, Run


class EvaluationVerbs(BatchVerbs):
    """Figures from the output of batch runs."""

    def batch_report(self, run_id: str | None = None) -> "BatchReport":
        """Count the output of a batch run, by its id or the start of it, or of the newest; of one
        that has not ended, its finished shards. Raises UnknownName; IntegrityError for output lost
        or altered."""
        from orchestrator.batch_reporting import report_run

        return report_run(self.parts.batches, self.batch_run(run_id).id)

    def evaluate(
        self,
        refs: Sequence[str],
        data: str | Path,
        *,
        mode: BatchMode | str = BatchMode.AUTO,
        columns: Mapping[str, str] | None = None,
        calibrate: bool = False,
        decoding: Decoding | None = None,
        answers: str | None = None,
        against: Literal["manual"] | None = None,
        output: str | Path | None = None,
        watch: "Watch | None" = None,
        pool: "Pool | None" = None,
    ) -> "Evaluation":
        """Have versions answer the same rows, each in a batch run, and judge them.

        `data` and the options are a batch run's. Where rows name tasks, a version answers its own
        task's. `against` "manual": they are held against their spec's manual prompt, which answers
        the rows too, and not against the first of them. `output`: an empty or new folder for the
        runs' output; by default one below the data directory, which `gc` collects. Raises
        InvalidInput before a row is answered.
        """
        from orchestrator.batch_data.location import absolute
        from orchestrator.questions.evaluation import check_evaluation, evaluate
        from orchestrator.questions.own_rows import split_rows

        settings = BatchSettings(
            mode=BatchMode(mode),
            columns=dict(columns or {}),
            calibrate=calibrate,
            decoding=decoding or Decoding(),
            answers_field=answers,
        )
        versions = [self.prompt(ref) for ref in refs]
        check_evaluation(versions, settings)
        manuals = {each.ref: self._manual_prompt(each) for each in versions} if against else {}
        source, folder = absolute(data), self._evaluation_folder(output)
        tasks = sorted({version.task for version in versions})
        rows = split_rows(source, tasks, settings, folder)
        with self._runs(folder, watch, pool) as run:
            return evaluate(versions, source, settings, rows, run, manuals)

    def _manual_prompt(self, version: "PromptVersion") -> str:
        from orchestrator.registry.own_spec import own_manual_prompt

        manual = own_manual_prompt(self.parts.jobs, version)
        if manual is None:
            raise InvalidInput(
                f"{version.ref} has no manual prompt to be held against: no job of this registry "
                "made it, or its spec gives none",
                "Give evaluation.manual_prompt in the spec and train again.",
            )
        return manual

    def _evaluation_folder(self, output: str | Path | None) -> str:
        from orchestrator.batch_data.location import absolute
        from orchestrator.batch_data.output_file import list_names

        if output is None:
            return str(self.settings.evaluations / uuid.uuid4().hex)
        folder = absolute(output).rstrip("/")
        if not folder or list_names(folder):
            raise InvalidInput(
                f"{output}: the folder is not empty", "Give --output a new or an empty folder."
            )
        return folder

    @contextmanager
    def _runs(self, folder: str, watch: "Watch | None", pool: "Pool | None") -> "Iterator[Run]":
        """Runs batches into `folder`, one after the other, on workers that stay up between."""
        from orchestrator.batch.ray_pool import RayPool
        from orchestrator.batch.request import BatchRequest
        from orchestrator.batch.run import Watch
        from orchestrator.batch.start import run_batch
        from orchestrator.batch_reporting import output_files
        from orchestrator.questions.evaluation import Finished

        numbers = count()
        workers = pool or RayPool(self.parts, (watch or Watch()).note)

        def run(source: str, settings: BatchSettings) -> "Finished":
            request = BatchRequest(source, f"{folder}/run-{next(numbers)}", settings)
            done = run_batch(self.parts, request, watch, _Held(workers))
            shards = self.parts.batches.shards(done.id)
            return Finished(done.id, output_files(done.run, shards), done.seconds)

        with workers.up():
            yield run


@dataclass(frozen=True)
class _Held:
    """Workers that somebody else keeps up."""

    pool: "Pool"

    def up(self) -> Any:
        return nullcontext()

    def answer(self, *work: Any) -> Any:
        return self.pool.answer(*work)
