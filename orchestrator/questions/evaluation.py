"""Evaluates versions by batch runs over the same rows, and says which is better, if any is.

Where the data name tasks, a version answers the rows of its own task; else all of them. A row is
right if its answer is the row's own; where one version knows a row's answer and another has only an
error for it, that one is wrong there. The first version of a task is what its others are held
against, or else the manual prompt of their spec, which then answers first.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType

from orchestrator.batch_report.answer_row import AnswerRow
from orchestrator.batch_report.part_reader import OutputFile, read_rows
from orchestrator.batch_report.version_report import VersionCount, VersionReport
from orchestrator.domain.batch import BatchMode, BatchSettings
from orchestrator.domain.errors import IntegrityError, InvalidInput
from orchestrator.domain.paired_hits import PairedHits, Share
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.questions.own_rows import OwnRows
from orchestrator.questions.prompt_compare import Comparison, flattery, metric_of, shared_answer


@dataclass(frozen=True)
class Finished:
    """A batch run that has ended: its output, in order."""

    run: str
    files: tuple[OutputFile, ...]
    seconds: float


#: Answers an input, as a path or URL, with the settings' prompt.
Run = Callable[[str, BatchSettings], Finished]


@dataclass(frozen=True)
class Contender:
    """Who answers: a version, or in its place `manual`, the manual prompt of its spec."""

    version: PromptVersion
    manual: str | None = None

    @property
    def name(self) -> str:
        return self.version.ref if self.manual is None else f"{self.version.task} (manual)"

    def settings(self, own: BatchSettings) -> BatchSettings:
        pin = PromptRef(self.version.task, self.version.number)
        return replace(own, prompt=pin, manual_prompt=self.manual)

    def count(self) -> VersionCount:
        number = self.version.number if self.manual is None else None
        return VersionCount(self.version.task, number)


@dataclass(frozen=True)
class Evaluated:
    """A version, or a manual prompt, on the data. `hits` are of all rows whose answer is known,
    errors among them; None where none is. `report` has the rest."""

    ref: str
    metric: str
    run: str
    seconds: float
    hits: Share | None
    report: VersionReport


@dataclass(frozen=True)
class Evaluation:
    """Versions in the order they were named, manual prompts before them; `comparisons` with the
    first one of each task."""

    data: str
    data_digest: str
    versions: tuple[Evaluated, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()


def check_evaluation(versions: Sequence[PromptVersion], settings: BatchSettings) -> None:
    """Raise InvalidInput for what no rows can judge, before anything is run."""
    if settings.mode is BatchMode.EMBED:
        raise InvalidInput(
            "an embedding is neither right nor wrong: there is nothing to evaluate",
            "Take another --mode.",
        )
    refs = Counter(version.ref for version in versions)
    doubled = [ref for ref, count in refs.items() if count > 1]
    if doubled:
        raise InvalidInput(f"{doubled[0]} is named twice", "Name each version once.")


def evaluate(
    versions: Sequence[PromptVersion],
    data: str,
    settings: BatchSettings,
    rows: OwnRows,
    run: Run,
    manuals: Mapping[str, str] = MappingProxyType({}),
) -> Evaluation:
    """Run each version over its rows, one run after the other, and count them together. `manuals`:
    manual prompts to hold them against, by version. Raises InvalidInput as `check_evaluation`, and
    where versions on the same rows predict other fields or have other manual prompts."""
    check_evaluation(versions, settings)
    groups = [_contenders(group, manuals) for group in _groups(versions, rows.is_by_task)]
    found: dict[str, tuple[Contender, Evaluated]] = {}
    comparisons: list[Comparison] = []
    for group in groups:
        source, own = rows.of(group[0].version.task, settings)
        runs = [run(source, each.settings(own)) for each in group]
        counts, joint = count_together(group, [read_rows(each.files) for each in runs])
        for place, (each, done, count) in enumerate(zip(group, runs, counts, strict=True)):
            share, metric = _share(joint, place), metric_of(each.version, settings.mode)
            figures = Evaluated(each.name, metric, done.run, done.seconds, share, count.freeze())
            found[each.name] = each, figures
        comparisons += _comparisons(group, joint, (data, rows.digest), settings.mode)
    manual = [name for name, (each, _) in found.items() if each.manual is not None]
    ordered = [found[name] for name in (*manual, *(version.ref for version in versions))]
    notes = (*rows.notes, *_notes(ordered, rows.digests, len(comparisons)))
    evaluated = tuple(figures for _, figures in ordered)
    return Evaluation(data, rows.digest, evaluated, tuple(comparisons), notes)


def count_together(
    contenders: Sequence[Contender], outputs: Sequence[Iterable[AnswerRow]]
) -> tuple[list[VersionCount], Counter[tuple[bool, ...]]]:
    """Each one's output counted, and of rows with a known answer how often which of the
    outputs were right together. Raises IntegrityError where they are not of the same rows."""
    counts = [each.count() for each in contenders]
    joint: Counter[tuple[bool, ...]] = Counter()
    try:
        for rows in zip(*outputs, strict=True):
            if len({row.row for row in rows}) > 1:
                raise ValueError
            for count, row in zip(counts, rows, strict=True):
                count.add(row)
            if any(row.expected is not None for row in rows):
                joint[tuple(row.is_right is True for row in rows)] += 1
    except ValueError as error:
        raise IntegrityError(
            "the outputs of the runs are not of the same rows",
            "The data changed between the runs: evaluate again.",
        ) from error
    return counts, joint


def paired(joint: Counter[tuple[bool, ...]], a: int, b: int) -> PairedHits | None:
    """Two outputs' hits on the same rows; None where no answer is known."""
    pairs: Counter[tuple[bool, bool]] = Counter()
    for hits, count in joint.items():
        pairs[hits[a], hits[b]] += count
    if not pairs:
        return None
    return PairedHits(
        pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False]
    )


def _groups(versions: Sequence[PromptVersion], is_by_task: bool) -> Iterator[list[PromptVersion]]:
    """Versions that answer the same rows."""
    if not is_by_task:
        yield list(versions)
        return
    for _, group in groupby(sorted(versions, key=lambda each: each.task), lambda each: each.task):
        yield list(group)


def _contenders(versions: Sequence[PromptVersion], manuals: Mapping[str, str]) -> list[Contender]:
    """The versions on the same rows, behind the manual prompt of all."""
    first = versions[0]
    for other in versions[1:]:
        shared_answer(first, other)
        if manuals.get(other.ref) != manuals.get(first.ref):
            raise InvalidInput(
                f"{first.ref} and {other.ref} have different manual prompts: "
                f"{manuals.get(first.ref)!r} and {manuals.get(other.ref)!r}",
                "Evaluate them apart, each against its own.",
            )
    manual = [Contender(first, manuals[first.ref])] if manuals else []
    return [*manual, *map(Contender, versions)]


def _share(joint: Counter[tuple[bool, ...]], place: int) -> Share | None:
    if not joint:
        return None
    num_hits = sum(count for hits, count in joint.items() if hits[place])
    return Share(num_hits, joint.total())


def _comparisons(
    group: Sequence[Contender],
    joint: Counter[tuple[bool, ...]],
    data: tuple[str, str],
    mode: BatchMode,
) -> Iterator[Comparison]:
    for place, other in enumerate(group[1:], start=1):
        hits = paired(joint, 0, place)
        if hits is not None:
            metrics = (metric_of(group[0].version, mode), metric_of(other.version, mode))
            yield Comparison(group[0].name, other.name, *data, metrics, hits)


def _notes(
    found: Sequence[tuple[Contender, Evaluated]],
    digests: Sequence[str],
    num_comparisons: int,
) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    for contender, each in found:
        version = contender.version
        if contender.manual is None:
            yield from flattery(version, digests)
        report = each.report
        if report.num_errors:
            first = report.reasons[0]
            yield (
                f"{each.ref} gave {report.num_errors} of {report.num_rows} rows an error and no "
                f"answer, row {first.row} the first: {first.example}"
            )
        known = each.hits.num_rows if each.hits else 0
        if known < report.num_rows:
            field = version.config["answer"]
            yield (
                f"{each.ref}: {report.num_rows - known} of {report.num_rows} rows do not say what "
                f"is right (the field {field!r})"
            )
    if num_comparisons > 1:
        yield (
            f"{num_comparisons} comparisons: p values are of each alone, and one in twenty is "
            "below 0.05 by chance"
        )
