"""A task's rows as token ids: what training packs, and what evaluation ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from encoders.errors import TemplateError
from encoders.packing import PackedRow
from encoders.template import Template
from encoders.tokenization import TextTokenizer
from orchestrator.domain.dataset import Dataset
from orchestrator.domain.errors import InvalidData
from orchestrator.domain.task_spec import TaskSpec

MAX_CANDIDATES = 1024


@dataclass(frozen=True)
class Example:
    """One encoded row: its context, its answer's tokens, and the answer's place in candidates."""

    context: tuple[int, ...]
    answer: tuple[int, ...]
    candidate: int


@dataclass(frozen=True)
class TaskData:
    """A task's examples by split, its candidates, and its manual prompt's held-out examples.

    `ends_answer` tells that answers close with the base's end token: where they are generated
    (any metric but accuracy), and where one candidate's tokens open another's, which ranking could
    not tell apart otherwise.
    """

    splits: Mapping[str, tuple[Example, ...]]
    candidates: tuple[str, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    ends_answer: bool
    manual: tuple[Example, ...] = ()
    manual_candidate_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def held_out(self) -> tuple[Example, ...]:
        """The rows the reported figures come from: `test` where given, else `eval`."""
        return self.splits.get("test", self.splits["eval"])

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: len(examples) for split, examples in self.splits.items()}

    @property
    def mean_positions(self) -> float:
        """Mean positions of a training row, context and answer."""
        train = self.splits["train"]
        return sum(len(e.context) + len(e.answer) for e in train) / len(train)


def max_row_length(spec: TaskSpec, base_length: int) -> int:
    """The most tokens a row may have; raise InvalidData if the spec asks for more than the base."""
    asked = spec.data.max_length
    if asked is not None and asked > base_length:
        raise InvalidData(
            f"task {spec.task}: data.max_length is {asked}, but the base {spec.base} takes at most "
            f"{base_length} tokens",
            f"Set data.max_length to {base_length} or less.",
        )
    return asked or base_length


def encode_task(
    spec: TaskSpec,
    datasets: Mapping[str, Dataset],
    tokenizer: TextTokenizer,
    max_length: int,
) -> TaskData:
    """Encode all splits; raise InvalidData naming file and line for a row that does not fit."""
    template = spec.parsed_template()
    candidates = _candidates(spec, datasets)
    plain_ids = _answer_ids(spec, template, candidates, tokenizer)
    ranks = spec.evaluation.metric == "accuracy"
    ends = not ranks or _any_opens_another(plain_ids)
    ids = ended(plain_ids, tokenizer) if ends else plain_ids
    encoder = _Encoder(template, tokenizer, candidates, ids, ranks, max_length)
    splits = {split: encoder.encode(dataset) for split, dataset in datasets.items()}
    manual = spec.parsed_manual_prompt()
    if manual is None:
        return TaskData(splits, candidates, ids, ends)
    manual_ids = _answer_ids(spec, manual, candidates, tokenizer)
    manual_encoder = _Encoder(manual, tokenizer, candidates, manual_ids, ranks, max_length)
    rows = manual_encoder.encode(datasets.get("test", datasets["eval"]))
    return TaskData(splits, candidates, ids, ends, rows, manual_ids)


def training_rows(task: str, examples: Sequence[Example]) -> list[PackedRow]:
    return [PackedRow(task, example.context, (example.answer,)) for example in examples]


def ranking_rows(
    task: str | None, examples: Sequence[Example], candidate_ids: tuple[tuple[int, ...], ...]
) -> list[PackedRow]:
    return [PackedRow(task, example.context, candidate_ids) for example in examples]


@dataclass(frozen=True)
class _Encoder:
    template: Template
    tokenizer: TextTokenizer
    candidates: tuple[str, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    ranks: bool
    max_length: int

    def encode(self, dataset: Dataset) -> tuple[Example, ...]:
        place = {answer: index for index, answer in enumerate(self.candidates)}
        examples = []
        for index, row in enumerate(dataset.rows):
            answer = row[self.template.answer]
            if answer not in place:
                raise InvalidData(
                    f"{dataset.place(index)}: the answer {answer!r} is not among the spec's "
                    f"candidates {list(self.candidates)}"
                )
            examples.append(self._example(dataset, index, place[answer]))
        return tuple(examples)

    def _example(self, dataset: Dataset, index: int, candidate: int) -> Example:
        try:
            context = self.template.encode_context(
                dataset.rows[index], self.tokenizer.encode, self.tokenizer.bos_token_id
            )
        except TemplateError as error:
            raise InvalidData(f"{dataset.place(index)}: {error}") from error
        answer = self.candidate_ids[candidate]
        if not context:
            raise InvalidData(f"{dataset.place(index)}: nothing stands before the answer")
        longest = max(map(len, self.candidate_ids)) if self.ranks else len(answer)
        if len(context) + longest > self.max_length:
            counted = "the longest candidate" if self.ranks else "answer"
            raise InvalidData(
                f"{dataset.place(index)}: the row has {len(context) + longest} tokens (virtual "
                f"tokens and {counted} counted); at most {self.max_length} are allowed",
                "Shorten the row, or raise data.max_length up to the base's context length.",
            )
        return Example(context, answer, candidate)


def _candidates(spec: TaskSpec, datasets: Mapping[str, Dataset]) -> tuple[str, ...]:
    if spec.candidates is not None:
        return _countable(spec, spec.candidates, "the spec has")
    answers = {row[spec.answer] for dataset in datasets.values() for row in dataset.rows}
    for split, dataset in datasets.items():
        for index, row in enumerate(dataset.rows):
            if not row[spec.answer].strip():
                raise InvalidData(f"{dataset.place(index)}: the answer is empty ({split} data)")
    return _countable(spec, tuple(sorted(answers)), "the data has")


def _countable(spec: TaskSpec, answers: tuple[str, ...], whose: str) -> tuple[str, ...]:
    """Return `answers`, or raise InvalidData if the metric cannot rank that many."""
    if spec.evaluation.metric == "accuracy" and not 2 <= len(answers) <= MAX_CANDIDATES:
        raise InvalidData(
            f"task {spec.task}: {whose} {len(answers)} distinct answers; the metric accuracy "
            f"ranks 2 to {MAX_CANDIDATES} candidates",
            "Give candidates: in the spec, or use the metric exact_match.",
        )
    return answers


def _answer_ids(
    spec: TaskSpec, template: Template, candidates: Sequence[str], tokenizer: TextTokenizer
) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(template.encode_answer(answer, tokenizer.encode) for answer in candidates)
    except TemplateError as error:
        raise InvalidData(f"task {spec.task}: {error}") from error


def _any_opens_another(ids: Sequence[tuple[int, ...]]) -> bool:
    known = set(ids)
    return any(answer[:n] in known for answer in ids for n in range(1, len(answer)))


def ended(ids: Sequence[tuple[int, ...]], tokenizer: TextTokenizer) -> tuple[tuple[int, ...], ...]:
    """The answers' tokens, each closed with the base's end token."""
    if tokenizer.eos_token_id is None:
        raise InvalidData(
            "this base's tokenizer has no end token, so answers cannot be told from longer ones",
            "Use the metric accuracy with answers of which none opens another.",
        )
    return tuple((*answer, tokenizer.eos_token_id) for answer in ids)
