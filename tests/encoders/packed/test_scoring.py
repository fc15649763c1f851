import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.packed.packing import PackedBatch, PackedRow, pack
from encoders.packed.scoring import answer_log_probs, greedy_matches, label_log_probs, rank_answers

VOCABULARY = 7
ids = st.integers(0, VOCABULARY - 1)
rows = st.lists(
    st.builds(
        PackedRow,
        st.none(),
        st.lists(ids, min_size=1, max_size=4).map(tuple),
        st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4).map(
            tuple
        ),
    ),
    min_size=1,
    max_size=4,
)


def logits_for(batch: PackedBatch) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(batch.kept), VOCABULARY, generator=generator)


def places(rows: list[PackedRow], batch: PackedBatch) -> list[list[list[int]]]:
    """For each row and answer, which kept position predicts each of its tokens."""
    labels = iter(batch.label_kept.tolist())
    return [[[next(labels) for _ in answer] for answer in row.answers] for row in rows]


@given(rows)
@settings(max_examples=50, deadline=None)
def test_scores_equal_a_plain_loop(rows: list[PackedRow]) -> None:
    batch = pack(rows, {})
    logits = logits_for(batch)
    log_probs = logits.log_softmax(-1)
    labels, answers, ranks, matches = [], [], [], []
    for row, kept in zip(rows, places(rows, batch), strict=True):
        scores = []
        for answer, where in zip(row.answers, kept, strict=True):
            each = [float(log_probs[p, t]) for p, t in zip(where, answer, strict=True)]
            labels += each
            scores.append(sum(each))
            matches.append(
                all(int(logits[p].argmax()) == t for p, t in zip(where, answer, strict=True))
            )
        answers += scores
        total = sum(torch.tensor(score).exp().item() for score in scores)
        ranks.append([torch.tensor(score).exp().item() / total for score in scores])

    assert label_log_probs(logits, batch).tolist() == pytest.approx(labels, abs=1e-5)
    assert answer_log_probs(logits, batch).tolist() == pytest.approx(answers, abs=1e-5)
    assert greedy_matches(logits, batch).tolist() == matches
    found = rank_answers(logits, batch)
    assert len(found) == len(ranks)
    for one, other in zip(found, ranks, strict=True):
        assert one.tolist() == pytest.approx(other, abs=1e-4)
        assert float(one.sum()) == pytest.approx(1)


def test_greedy_match_needs_every_token() -> None:
    batch = pack([PackedRow(None, (1,), ((2, 3), (2, 4)))], {})
    logits = torch.zeros(len(batch.kept), VOCABULARY)
    logits[batch.label_kept[0], 2] = 1
    logits[batch.label_kept[1], 3] = 1
    assert greedy_matches(logits, batch).tolist() == [True, False]


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    batch = pack([PackedRow(None, (1,), ((2, 3),))], {})
    logits = logits_for(batch).bfloat16()
    scores = label_log_probs(logits, batch)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, label_log_probs(logits.float(), batch))


def test_scores_carry_a_gradient() -> None:
    batch = pack([PackedRow(None, (1,), ((2, 3),))], {})
    logits = logits_for(batch).requires_grad_()
    answer_log_probs(logits, batch).sum().backward()
    assert float(logits.grad.abs().sum()) > 0  # type: ignore[union-attr]
