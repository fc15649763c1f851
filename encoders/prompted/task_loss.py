"""Losses of batches whose rows have heads of their own: transformers' losses, row by row.

Each is the mean over what counts in the whole batch (rows, or labelled tokens), so that a batch of
one prompt gives transformers' loss. Shapes: B rows, T positions, C labels of a prompt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.errors import PromptError
from encoders.prompted.attached_prompt import AttachedPrompt
from encoders.prompted.prompt_rows import PromptRows

IGNORED = -100


def sequence_loss(logits: Tensor, labels: Tensor, rows: PromptRows) -> Tensor:
    """Loss of one label a row. logits [B, C or more]; labels [B], or [B, C or more] of numbers.

    One label of a head is a regression; class numbers are single-label; [B, C] numbers are
    multi-label, unless the base's config says `problem_type`.
    """
    losses, counts = [], []
    for prompt, index in rows.by_prompt():
        loss, count = _problem_loss(prompt, logits[index.to(logits.device)], _rows(labels, index))
        losses.append(loss)
        counts.append(count)
    return torch.stack(losses).sum() / torch.stack(counts).sum()


def token_loss(logits: Tensor, labels: Tensor, mask: Tensor, rows: PromptRows) -> Tensor:
    """Cross-entropy of the labels [B, T] at positions where `mask` is true. logits [B, T, C...]."""
    labels = labels.to(logits.device).masked_fill(~mask.to(logits.device), IGNORED)
    total = logits.new_zeros(())
    for prompt, index in rows.by_prompt():
        index = index.to(logits.device)
        own = logits[index][..., : _num_labels(prompt, logits)]
        total = total + F.cross_entropy(
            own.flatten(0, 1), labels[index].flatten(), ignore_index=IGNORED, reduction="sum"
        )
    return total / (labels != IGNORED).sum()


def span_loss(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean cross-entropy of an answer's first and last position [B], in the input's count.

    logits [B, T] are -inf at padding. Positions outside of the text are ignored.
    """
    losses = []
    for logits, positions in ((start_logits, start), (end_logits, end)):
        length = logits.shape[1]
        target = positions.to(logits.device).view(-1).clamp(0, length)  # as transformers does
        inside = torch.where(target < length, target, 0).unsqueeze(1)
        is_text = logits.gather(1, inside).squeeze(1) > -torch.inf
        target = target.masked_fill(~is_text | (target == length), IGNORED)
        losses.append(F.cross_entropy(logits, target, ignore_index=IGNORED))
    return (losses[0] + losses[1]) / 2


def _problem_loss(prompt: AttachedPrompt, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of the loss, and how many rows count."""
    num_labels = _num_labels(prompt, logits)
    logits, labels = logits[:, :num_labels], labels.to(logits.device)
    problem = prompt.problem_type or _problem_type(num_labels, labels)
    num_rows = torch.tensor(len(logits), device=logits.device)
    if problem == "single_label_classification":
        target = labels.reshape(len(labels), -1)[:, 0].long()
        loss = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        return loss, (target != IGNORED).sum()
    if labels.dim() == 1:
        labels = labels.unsqueeze(1)
    if labels.shape[1] < num_labels:
        raise PromptError(
            f"the prompt {prompt.name!r} has {num_labels} labels, but a row gives "
            f"{labels.shape[1]} numbers as labels"
        )
    labels = labels[:, :num_labels].to(logits.dtype)
    if problem == "regression":
        losses = F.mse_loss(logits, labels, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses.mean(1).sum(), num_rows


def _problem_type(num_labels: int, labels: Tensor) -> str:
    if num_labels == 1:
        return "regression"
    is_class = labels.dim() == 1 or not labels.is_floating_point()
    return "single_label_classification" if is_class else "multi_label_classification"


def _num_labels(prompt: AttachedPrompt, logits: Tensor) -> int:
    return prompt.num_labels or logits.shape[-1]


def _rows(labels: Tensor, index: Tensor) -> Tensor:
    return labels[index.to(labels.device)]
