"""The report of a run: its facts, and what its output rows come to, for each task and version."""

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.batch_report.answer_row import AnswerRow
from orchestrator.batch_report.run_facts import RunFacts
from orchestrator.batch_report.version_report import VersionCount, VersionReport

#: Of tasks that name no version, as many are told apart: an input may name a new one in each row.
MAX_UNRESOLVED = 200

Key = tuple[str | None, int | None]


@dataclass(frozen=True)
class BatchReport:
    """`versions` in the order of their names. Rows are those of finished shards."""

    facts: RunFacts
    versions: tuple[VersionReport, ...]

    @property
    def num_rows(self) -> int:
        return sum(version.num_rows for version in self.versions)

    @property
    def num_errors(self) -> int:
        return sum(version.num_errors for version in self.versions)

    @property
    def num_tokens(self) -> int:
        """Generated ones."""
        return sum(version.num_tokens for version in self.versions)

    @property
    def rows_per_s(self) -> float | None:
        return _rate(self.num_rows, self.facts.seconds)

    @property
    def tokens_per_s(self) -> float | None:
        return _rate(self.num_tokens, self.facts.seconds) if self.num_tokens else None

    @property
    def positions_per_s(self) -> float | None:
        """Positions read, of finished shards; None where the ledger has no count of them."""
        positions = sum(shard.num_positions for shard in self.facts.shards)
        return _rate(positions, self.facts.seconds) if positions else None

    def seconds_per_row(self, share: float, ref: str | None = None) -> float | None:
        """What `share` of the rows (of one version) took at most, on their worker: a row takes its
        shard's mean."""
        if ref is None:
            return _quantile([(s.seconds, s.num_rows) for s in self.facts.shards], share)
        own = [s for s in self.facts.shards if ref in s.counts and s.num_positions]
        return _quantile([(s.seconds_of(ref), s.counts[ref].rows) for s in own], share)


def count_rows(facts: RunFacts, rows: Iterable[AnswerRow]) -> BatchReport:
    """The report of a run whose output is `rows`; they are read once and not kept."""
    counts: dict[Key, VersionCount] = {}
    num_unresolved = 0
    for row in rows:
        key: Key = (row.task, row.version)
        if key not in counts:
            if row.version is None:
                num_unresolved += 1
                if num_unresolved > MAX_UNRESOLVED:
                    key = (None, None)
            counts.setdefault(key, VersionCount(*key))
        counts[key].add(row)
    ordered = sorted(counts, key=lambda key: (key[0] is None, key[0] or "", key[1] or 0))
    return BatchReport(facts, tuple(counts[key].freeze() for key in ordered))


def _rate(number: int, seconds: float | None) -> float | None:
    return number / seconds if seconds else None


def _quantile(pools: Iterable[tuple[float, int]], share: float) -> float | None:
    """Of pools of (seconds, rows): the seconds of a row that `share` of the rows do not pass."""
    ordered = sorted((seconds / rows, rows) for seconds, rows in pools if rows)
    left = share * sum(rows for _, rows in ordered)
    for mean, rows in ordered:
        left -= rows
        if left <= 0:
            return mean
    return None
