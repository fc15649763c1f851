"""The figures of one version in a run; rows that name no version are together, by task."""

from dataclasses import dataclass, field

from orchestrator.batch_report.answer_row import AnswerRow
from orchestrator.batch_report.calibration import Calibration, ScoreCount
from orchestrator.batch_report.confusion import Confusion, ConfusionCount
from orchestrator.batch_report.error_reasons import Reason, ReasonCount
from orchestrator.domain.paired_hits import Share


@dataclass(frozen=True)
class VersionReport:
    """`hits`: the right ones of the answered rows whose answer is known, None without any.
    `num_tokens`: generated. `mean_log_likelihood`: of known answers that were scored."""

    task: str | None
    version: int | None
    num_rows: int
    num_errors: int
    reasons: tuple[Reason, ...]
    hits: Share | None
    confusion: Confusion | None
    calibration: Calibration | None
    num_tokens: int
    mean_log_likelihood: float | None

    @property
    def name(self) -> str:
        """`TASK@NUMBER`, or what is known of it."""
        if self.task is None:
            return "no task"
        return f"{self.task}@{self.version}" if self.version else f"{self.task} (no version)"


@dataclass
class VersionCount:
    """Counts a version's rows as they come."""

    task: str | None
    version: int | None
    _rows: int = 0
    _errors: int = 0
    _known: int = 0
    _hits: int = 0
    _tokens: int = 0
    _scored: int = 0
    _log_likelihood: float = 0.0
    _reasons: ReasonCount = field(default_factory=ReasonCount)
    _scores: ScoreCount = field(default_factory=ScoreCount)
    _confusion: ConfusionCount = field(default_factory=ConfusionCount)

    def add(self, row: AnswerRow) -> None:
        self._rows += 1
        self._tokens += row.tokens or 0
        if row.error is not None:
            self._errors += 1
            self._reasons.add(row.error, row.row)
            return
        if row.score is not None:
            self._scores.add(row.score, row.is_right)
        if row.is_right is not None:
            self._judge(row, row.is_right)

    def _judge(self, row: AnswerRow, is_right: bool) -> None:
        expected = (row.expected or "").strip()
        self._known += 1
        self._hits += is_right
        self._confusion.add(expected, row.said or "", is_right)
        if row.answer is None and row.scores and expected in row.scores:
            self._scored += 1
            self._log_likelihood += row.scores[expected]

    def freeze(self) -> VersionReport:
        return VersionReport(
            task=self.task,
            version=self.version,
            num_rows=self._rows,
            num_errors=self._errors,
            reasons=self._reasons.freeze(),
            hits=Share(self._hits, self._known) if self._known else None,
            confusion=self._confusion.freeze(),
            calibration=self._scores.freeze(),
            num_tokens=self._tokens,
            mean_log_likelihood=self._log_likelihood / self._scored if self._scored else None,
        )
