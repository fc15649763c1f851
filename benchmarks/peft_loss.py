"""The loss of a batch by a PeftModel whose prompt stands first, written in three ways.

Rows are padded on the right to the longest of their batch. Left padding, which would put all
answers in the same last columns, is not exact here: PEFT ignores position ids, so the padding
would stand between the prompt and the text. A tensor `logits_to_keep` does better anyway.

Imports nothing of Tutti: opponent A's process loads this file as well. P virtual tokens, B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100

Ids = Sequence[int]
Row = tuple[Ids, Ids]  # the tokens of a text, without virtual ones, and of its answer


@dataclass(frozen=True)
class PeftVariant:
    """A way to write the loop. All are exact; the fastest is opponent B, the first opponent A.

    keeps_answers: logits at answer positions alone (`logits_to_keep` [B, A]), no `labels`.
    passes_mask: the attention mask is passed, as collators do. A causal model with padding on the
    right does not need it, and attention without a mask has a faster kernel.
    """

    name: str
    keeps_answers: bool
    passes_mask: bool

    def loss(self, model: Any, rows: Sequence[Row], num_virtual_tokens: int) -> Tensor:
        """The mean loss of an answer token."""
        if self.keeps_answers:
            return _answer_loss(model, rows, num_virtual_tokens, self.passes_mask)
        return _label_loss(model, rows)

    def num_positions(self, rows: Sequence[Row], num_virtual_tokens: int) -> int:
        """What a step computes, padding and virtual tokens counted."""
        unused = 1 if self.keeps_answers else 0  # the answer's last token need not go in
        width = max(len(text) + len(answer) for text, answer in rows) - unused
        return len(rows) * (width + num_virtual_tokens)


USUAL, _, LEANEST = VARIANTS = (
    PeftVariant("labels, attention mask, all logits", False, True),
    PeftVariant("answer logits only, attention mask", True, True),
    PeftVariant("answer logits only, no attention mask", True, False),
)


def _label_loss(model: Any, rows: Sequence[Row]) -> Tensor:
    """The usual loop: whole rows, and labels that are ignored outside the answer."""
    ids = [(*text, *answer) for text, answer in rows]
    labels = [(*[IGNORED] * len(text), *answer) for text, answer in rows]
    output = model(
        input_ids=padded(ids), attention_mask=_mask(ids), labels=padded(labels, IGNORED),
        use_cache=False,
    )  # fmt: skip
    loss: Tensor = output.loss
    return loss


def _answer_loss(
    model: Any, rows: Sequence[Row], num_virtual_tokens: int, passes_mask: bool
) -> Tensor:
    """The LM head at answer positions alone; the answer's last token is no input."""
    ids = [(*text, *answer[:-1]) for text, answer in rows]
    ends = [num_virtual_tokens + len(text) - 1 for text, _ in rows]
    labels = padded([answer for _, answer in rows], IGNORED)
    mask = _mask(ids) if passes_mask else None
    logits = kept_logits(model, ids, ends, labels.shape[1], num_virtual_tokens, mask)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def kept_logits(
    model: Any,
    ids: Sequence[Ids],
    ends: Sequence[int],
    count: int,
    num_virtual_tokens: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Logits [B, count, vocabulary] at each row's position `ends[b]`, virtual ones counted, and at
    those after it; past a row's end they mean nothing."""
    inputs = padded(ids)
    kept = torch.tensor(ends)[:, None] + torch.arange(count)
    kept = kept.clamp(max=num_virtual_tokens + inputs.shape[1] - 1)
    options = {} if mask is None else {"attention_mask": mask}
    logits: Tensor = model(input_ids=inputs, logits_to_keep=kept, use_cache=False, **options).logits
    return logits


def padded(rows: Sequence[Ids], filler: int = 0) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def _mask(rows: Sequence[Ids]) -> Tensor:
    return padded([[1] * len(row) for row in rows])
