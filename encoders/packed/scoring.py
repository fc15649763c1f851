"""What kept logits say about answers: log-probabilities, losses, ranks, greedy matches.

The batch may be on another device than its logits.

Shapes: K kept positions, L labels, A answers, R rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.packed.packing import PackedBatch


def label_log_probs(logits: Tensor, batch: PackedBatch) -> Tensor:
    """Log-probability [L] of each label, from logits [K, vocabulary]."""
    batch = batch.to(logits.device)
    return -F.cross_entropy(
        logits.index_select(0, batch.label_kept).float(), batch.label_ids, reduction="none"
    )


def answer_log_probs(logits: Tensor, batch: PackedBatch) -> Tensor:
    """Log-probability [A] of each whole answer: the sum over its tokens.

    A position that many answers begin at is normalised once, and never copied for each.
    """
    batch = batch.to(logits.device)
    total = logits.float().logsumexp(-1)
    chosen = logits[batch.label_kept, batch.label_ids].float()
    labels = chosen - total.index_select(0, batch.label_kept)
    return labels.new_zeros(batch.num_answers).index_add(0, batch.label_answer, labels)


def rank_answers(logits: Tensor, batch: PackedBatch) -> list[Tensor]:
    """For each row, the probabilities of its answers among themselves (they sum to 1)."""
    scores = answer_log_probs(logits, batch)
    counts = torch.bincount(batch.answer_row)
    return [row.softmax(0) for row in scores.split(counts.tolist())]


def greedy_matches(logits: Tensor, batch: PackedBatch) -> Tensor:
    """Whether greedy decoding would emit each answer [A]: each label is its position's argmax."""
    batch = batch.to(logits.device)
    wrong = (logits.argmax(-1).index_select(0, batch.label_kept) != batch.label_ids).long()
    return wrong.new_zeros(batch.num_answers).index_add(0, batch.label_answer, wrong) == 0
