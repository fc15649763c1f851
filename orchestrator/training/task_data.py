"""A task's rows as token ids: what training packs, and what evaluation ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from encoders.errors import TemplateError
from encoders.packed.packing import PackedRow
from encoders.text.chat_markup import ChatMarkup
from encoders.text.row_encoder import RowEncoder
from encoders.text.template import Template
from encoders.text.tokenization import TextTokenizer
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
    not tell apart otherwise. `chat` is the markup around all rows, where the spec asks for one.
    """

    splits: Mapping[str, tuple[Example, ...]]
    candidates: tuple[str, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    ends_answer: bool
    manual: tuple[Example, ...] = ()
    manual_candidate_ids: tuple[tuple[int, ...], ...] = ()
    chat: ChatMarkup | None = None

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
    try:
        chat = ChatMarkup.render(tokenizer) if spec.chat else None
    except TemplateError as error:
        raise InvalidData(f"task {spec.task}: chat: {error}") from error
    rows = _row_encoder(spec, spec.parsed_template(), tokenizer, max_length, chat)
    candidates = _candidates(spec, datasets)
    plain_ids = _answer_ids(spec, rows, candidates)
    ranks = spec.evaluation.metric == "accuracy"
    ends = not ranks or _any_opens_another(plain_ids)
    ids = ended(plain_ids, tokenizer) if ends else plain_ids
    encoder = _Encoder(rows, candidates, ids, ranks)
    splits = {split: encoder.encode(dataset) for split, dataset in datasets.items()}
    manual = spec.parsed_manual_prompt()
    if manual is None:
        return TaskData(splits, candidates, ids, ends, chat=chat)
    manual_rows = _row_encoder(spec, manual, tokenizer, max_length, chat)
    manual_ids = _answer_ids(spec, manual_rows, candidates)
    manual_encoder = _Encoder(manual_rows, candidates, manual_ids, ranks)
    examples = manual_encoder.encode(datasets.get("test", datasets["eval"]))
    return TaskData(splits, candidates, ids, ends, examples, manual_ids, chat)


def training_rows(task: str, examples: Sequence[Example]) -> list[PackedRow]:
    return [PackedRow(task, example.context, (example.answer,)) for example in examples]


def ranking_rows(
    task: str | None, examples: Sequence[Example], candidate_ids: tuple[tuple[int, ...], ...]
) -> list[PackedRow]:
    return [PackedRow(task, example.context, candidate_ids) for example in examples]


def _row_encoder(
    spec: TaskSpec,
    template: Template,
    tokenizer: TextTokenizer,
    max_length: int,
    chat: ChatMarkup | None,
) -> RowEncoder:
    """The rule for `template`'s rows; a manual prompt may lack the field that gives way."""
    truncate = spec.data.truncate if spec.data.truncate in template.fields else None
    return RowEncoder(template, tokenizer, max_length, truncate, chat)


@dataclass(frozen=True)
class _Encoder:
    rows: RowEncoder
    candidates: tuple[str, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    ranks: bool

    def encode(self, dataset: Dataset) -> tuple[Example, ...]:
        place = {answer: index for index, answer in enumerate(self.candidates)}
        examples = []
        for index, row in enumerate(dataset.rows):
            answer = row[self.rows.template.answer]
            if answer not in place:
                raise InvalidData(
                    f"{dataset.place(index)}: the answer {answer!r} is not among the spec's "
                    f"candidates {list(self.candidates)}"
                )
            examples.append(self._example(dataset, index, place[answer]))
        return tuple(examples)

    def _example(self, dataset: Dataset, index: int, candidate: int) -> Example:
        answer = self.candidate_ids[candidate]
        try:
            context = self.rows.encode_context(dataset.rows[index], self._room(answer))
        except TemplateError as error:
            raise InvalidData(f"{dataset.place(index)}: {error}") from error
        if not context:
            raise InvalidData(f"{dataset.place(index)}: nothing stands before the answer")
        return Example(context, answer, candidate)

    def _room(self, answer: tuple[int, ...]) -> int:
        """The tokens kept free: for any candidate where all are ranked, and where rows are cut, so
        that they are cut alike in inference, which does not know the answer."""
        any_answer = self.ranks or self.rows.truncate is not None
        return max(map(len, self.candidate_ids)) if any_answer else len(answer)


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
    spec: TaskSpec, rows: RowEncoder, candidates: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(map(rows.encode_answer, candidates))
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
