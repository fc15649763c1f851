"""Accuracy by ranking candidate answers with a PeftModel, as lean as PEFT allows; no gradient.

A row runs once for each way its candidates' tokens go on, so that answers of one token cost one
sequence together; logits come from answer positions alone. Imports nothing of Tutti.
"""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.peft_loss import Ids, kept_logits

SEQUENCES = 64  # of one forward pass


@torch.no_grad()
def ranking_accuracy(
    model: Any,
    rows: Sequence[tuple[Ids, int]],
    candidates: Sequence[Ids],
    num_virtual_tokens: int,
) -> float:
    """The share of `rows` (a text, and its answer's place among the candidates) ranked right."""
    tails = _longest_tails(candidates)
    ordered = sorted(rows, key=lambda row: len(row[0]))
    at_once = max(1, SEQUENCES // len(tails))
    hits = sum(
        _hits(model, ordered[first : first + at_once], candidates, tails, num_virtual_tokens)
        for first in range(0, len(ordered), at_once)
    )
    return hits / len(rows)


def _longest_tails(candidates: Sequence[Ids]) -> list[tuple[int, ...]]:
    """What has to follow a text for every candidate to be scored: all its tokens but the last,
    where they do not open another's."""
    tails = {tuple(candidate[:-1]) for candidate in candidates}
    return sorted(t for t in tails if not any(o != t and o[: len(t)] == t for o in tails))


def _hits(
    model: Any,
    rows: Sequence[tuple[Ids, int]],
    candidates: Sequence[Ids],
    tails: Sequence[tuple[int, ...]],
    num_virtual_tokens: int,
) -> int:
    ids = [(*text, *tail) for text, _ in rows for tail in tails]
    ends = [num_virtual_tokens + len(text) - 1 for text, _ in rows for _ in tails]
    count = max(map(len, candidates))
    logits = kept_logits(model, ids, ends, count, num_virtual_tokens)
    log_probs = logits.float().log_softmax(-1).unflatten(0, (len(rows), len(tails)))
    scores = []
    for candidate in candidates:
        length = len(candidate) - 1
        tail = next(i for i, t in enumerate(tails) if t[:length] == tuple(candidate[:-1]))
        steps = torch.arange(len(candidate))
        scores.append(log_probs[:, tail, steps, torch.tensor(candidate)].sum(-1))
    best = torch.stack(scores, dim=1).argmax(1).tolist()
    return sum(place == gold for place, (_, gold) in zip(best, rows, strict=True))
