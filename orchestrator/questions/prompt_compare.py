"""Evaluates two versions on one data set, in this process, and says whether one is better.

Both answer the same rows, as in a batch run: the answer that ranks first, or the one that greedy
decoding gives. A row is right if the answer is the row's own.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.bootstrap import Parts
from orchestrator.domain.batch import BatchMode
from orchestrator.domain.dataset import Dataset, read_dataset
from orchestrator.domain.errors import InvalidData, InvalidInput
from orchestrator.domain.paired_hits import SIGNIFICANT, PairedHits
from orchestrator.domain.prompt_version import PromptVersion

if TYPE_CHECKING:
    from orchestrator.inference.served_prompt import ServedPrompt


@dataclass(frozen=True)
class Comparison:
    """Two versions on one data set; `metric` is accuracy (of ranked candidates) or exact_match."""

    a: str
    b: str
    data: str
    data_digest: str
    metrics: tuple[str, str]
    hits: PairedHits
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Which is better, in words."""
        hits = self.hits
        better = self.b if hits.difference > 0 else self.a
        if hits.is_significant:
            return (
                f"{better} is better: {_points(hits.difference)} points from {self.a} to {self.b} "
                f"(95% interval {' to '.join(map(_points, hits.difference_interval))}, "
                f"p = {hits.p_value:.2g})"
            )
        return (
            f"no difference can be told on {hits.num_rows} rows: the versions part on "
            f"{hits.only_a + hits.only_b} of them (p = {hits.p_value:.2g}, "
            f"not below {SIGNIFICANT})"
        )


def compare_prompts(parts: Parts, a: PromptVersion, b: PromptVersion, data: Path) -> Comparison:
    """Answer each row of a JSONL file with both versions, and count.

    Raises InvalidInput where the two cannot be compared on one set of rows, and InvalidData for a
    row that either cannot take.
    """
    answer = shared_answer(a, b)
    dataset = read_dataset(data, sorted({*_fields(a), *_fields(b), answer}))
    first, second = (_hits(parts, version, dataset, answer) for version in (a, b))
    return Comparison(
        a=a.ref,
        b=b.ref,
        data=str(data),
        data_digest=dataset.digest,
        metrics=(metric_of(a), metric_of(b)),
        hits=PairedHits.count(first, second),
        notes=tuple(_warnings(dataset, a, b)),
    )


def shared_answer(a: PromptVersion, b: PromptVersion) -> str:
    """The field both predict. Raises InvalidInput where they predict two, or are one."""
    if a.ref == b.ref:
        raise InvalidInput(f"both are {a.ref}", "Give two versions.")
    first, second = str(a.config["answer"]), str(b.config["answer"])
    if first != second:
        raise InvalidInput(
            f"{a.ref} predicts the field {first!r}, {b.ref} predicts {second!r}: no row can say "
            "which is right",
            "Compare versions that predict the same field.",
        )
    return first


def _fields(version: PromptVersion) -> tuple[str, ...]:
    from encoders.text.template import Template

    return Template.parse(version.config["template"], version.config["answer"]).fields


def metric_of(version: PromptVersion, mode: BatchMode = BatchMode.AUTO) -> str:
    """What the share of right answers is called: of ranked (or scored) answers, or generated."""
    if mode is BatchMode.AUTO:
        return "accuracy" if version.config["candidates"] else "exact_match"
    return "exact_match" if mode is BatchMode.GENERATE else "accuracy"


def flattery(version: PromptVersion, digests: Collection[str]) -> Iterator[str]:
    """Whether these very data files made the version, or chose it."""
    for split, how in (("train", "trained on"), ("eval", "chosen by")):
        if version.lineage.datasets.get(split) in digests:
            yield f"{version.ref} was {how} these very rows: its figure flatters it"


def _hits(parts: Parts, version: PromptVersion, dataset: Dataset, answer: str) -> list[bool]:
    """Which rows a version answers right. The base is let go of before the next one is loaded."""
    from orchestrator.inference.predictor import Predictor, Query

    fingerprint = version.lineage.base_fingerprint
    parts.base_store.verify(fingerprint)
    max_length = parts.bases.get_by_fingerprint(fingerprint).max_length
    folder = parts.base_store.path(fingerprint)
    predictor = Predictor.load(folder, max_length, [version], parts.artifacts)
    queries = [
        Query(version.ref, _encode(predictor.prompts[version.ref], dataset, index))
        for index in range(len(dataset))
    ]
    wanted = [row[answer].strip() for row in dataset.rows]
    found = predictor.answer(queries)
    return [each.text == text for each, text in zip(found, wanted, strict=True)]


def _encode(prompt: "ServedPrompt", dataset: Dataset, index: int) -> tuple[int, ...]:
    try:
        return prompt.encode(dataset.rows[index])
    except InvalidData as error:
        raise InvalidData(f"{dataset.place(index)}: {error.message}", error.remedy) from error


def _warnings(dataset: Dataset, *versions: PromptVersion) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    for version in versions:
        yield from flattery(version, [dataset.digest])
        known = set(version.config["candidates"] or ())
        if known:
            answers = (row[str(version.config["answer"])].strip() for row in dataset.rows)
            if num_unknown := sum(answer not in known for answer in answers):
                yield f"{version.ref} has no candidate for the answers of {num_unknown} rows"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
