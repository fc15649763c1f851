import pytest
import torch

from encoders.packed.packing import PackedRow, pack
from encoders.packed.pass_budget import split_by_budget
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.task_spec import Metric
from orchestrator.training.evaluation import Evaluation, Score
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import Example
from tests.orchestrator.training.conftest import WIDTH, MakeData, make_spec

LENGTHS = {"colour": 4}


@pytest.fixture(scope="module")
def virtual() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"colour": torch.randn(4, WIDTH, generator=generator)}


@torch.no_grad()
def token_log_probs(
    base: ShardedBase,
    virtual: dict[str, torch.Tensor],
    context: tuple[int, ...],
    answer: tuple[int, ...],
) -> list[float]:
    """Each answer token's log-probability, from a row run alone."""
    batch = pack([PackedRow("colour", context, (answer,))], LENGTHS)
    logits = base.model.logits(batch, virtual).log_softmax(-1)
    return [float(logits[k, t]) for k, t in zip(batch.label_kept, answer, strict=True)]


@torch.no_grad()
def greedy(
    base: ShardedBase, virtual: dict[str, torch.Tensor], context: tuple[int, ...], length: int
) -> tuple[int, ...]:
    said: tuple[int, ...] = ()
    for _ in range(length):
        batch = pack([PackedRow("colour", context + said)], LENGTHS)
        said += (int(base.model.logits(batch, virtual)[0].argmax()),)
    return said


@torch.no_grad()
def evaluate(
    base: ShardedBase,
    virtual: dict[str, torch.Tensor],
    metric: Metric,
    examples: tuple[Example, ...],
    ids: tuple[tuple[int, ...], ...],
    max_positions: int,
) -> Score:
    evaluation = Evaluation(metric, "colour", examples, ids)
    for rows in split_by_budget(evaluation.rows, max_positions):
        batch = pack(rows, LENGTHS)
        evaluation.add(base.model.logits(batch, virtual), batch)
    return evaluation.score()


@pytest.mark.parametrize("max_positions", [1, 60, 2000])
@pytest.mark.parametrize("candidates", [("red", "blue"), ("red", "blue", "reddish", "g", "b")])
def test_accuracy_equals_a_plain_loop(
    base: ShardedBase,
    make_data: MakeData,
    virtual: dict[str, torch.Tensor],
    candidates: tuple[str, ...],
    max_positions: int,
) -> None:
    data = make_data(make_spec(candidates=candidates))
    examples = data.splits["train"]
    hits, losses = [], []
    for example in examples:
        scores = [
            sum(token_log_probs(base, virtual, example.context, ids)) for ids in data.candidate_ids
        ]
        hits.append(max(range(len(scores)), key=scores.__getitem__) == example.candidate)
        losses += token_log_probs(base, virtual, example.context, example.answer)
    score = evaluate(base, virtual, "accuracy", examples, data.candidate_ids, max_positions)
    assert score.metric == "accuracy"
    assert score.value == sum(hits) / len(hits)
    assert score.loss == pytest.approx(-sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize("max_positions", [1, 2000])
def test_loss_is_the_mean_over_answer_tokens(
    base: ShardedBase, make_data: MakeData, virtual: dict[str, torch.Tensor], max_positions: int
) -> None:
    data = make_data(make_spec(evaluation={"metric": "loss"}))
    examples = data.splits["train"]
    each = [t for e in examples for t in token_log_probs(base, virtual, e.context, e.answer)]
    score = evaluate(base, virtual, "loss", examples, data.candidate_ids, max_positions)
    assert score.value == score.loss == pytest.approx(-sum(each) / len(each), abs=1e-5)


def test_exact_match_is_what_greedy_decoding_says(
    base: ShardedBase, virtual: dict[str, torch.Tensor], tokenizer: TextTokenizer
) -> None:
    contexts = [(*tokenizer.encode(word), -1, -2, -3, -4) for word in ("a", "bb", "c1")]
    ids = (greedy(base, virtual, contexts[0], 3), (5, 6), greedy(base, virtual, contexts[2], 2))
    examples = tuple(Example(c, ids[i], i) for i, c in enumerate(contexts))
    score = evaluate(base, virtual, "exact_match", examples, ids, 2000)
    assert score.value == pytest.approx(2 / 3)


def test_rows_of_the_manual_prompt_need_no_virtual_tokens(
    base: ShardedBase, make_data: MakeData
) -> None:
    spec = make_spec(evaluation={"manual_prompt": "the colour of {word} is {colour}"})
    data = make_data(spec)
    evaluation = Evaluation("accuracy", None, data.manual, data.manual_candidate_ids)
    with torch.no_grad():
        for rows in split_by_budget(evaluation.rows, 500):
            batch = pack(rows, {})
            evaluation.add(base.model.logits(batch, {}), batch)
    assert 0 <= evaluation.score().value <= 1


def test_a_greater_key_is_a_better_score() -> None:
    assert Score("accuracy", 0.6, 2.0).key > Score("accuracy", 0.5, 1.0).key
    assert Score("exact_match", 0.6, 2.0).key > Score("exact_match", 0.5, 1.0).key
    assert Score("loss", 1.0, 1.0).key > Score("loss", 2.0, 2.0).key


def test_equal_values_are_told_apart_by_the_loss() -> None:
    assert Score("accuracy", 0.5, 1.0).key > Score("accuracy", 0.5, 2.0).key
    assert not Score("accuracy", 0.5, 1.0).key > Score("accuracy", 0.5, 1.0).key
