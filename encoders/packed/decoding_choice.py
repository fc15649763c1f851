"""The next token of each sequence: the likeliest, or one drawn by transformers' own warpers.

A draw follows from a seed, the row's number and the step alone, by a hash: whatever is decoded
beside it, in whatever order, in whatever run, a row draws the same numbers.

Shapes: N sequences.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SORTED_AT_ONCE = 32  # rows whose vocabulary is sorted and summed together: bounds the memory


@dataclass(frozen=True)
class Sampling:
    """Draw tokens: temperature, then the `top_k` likeliest (0: all), then the fewest that have
    `top_p` of the probability together."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def log_normalizers(logits: Tensor) -> Tensor:
    """What is subtracted from logits [N, vocabulary] for log-probabilities: [N]."""
    return torch.cat([each.float().logsumexp(-1) for each in logits.split(SORTED_AT_ONCE)])


def choose_likeliest(logits: Tensor) -> tuple[list[int], list[float]]:
    """Each row's token, and its log-probability."""
    best, tokens = logits.float().max(-1)
    return tokens.tolist(), (best - log_normalizers(logits)).tolist()


def choose_sampled(
    logits: Tensor, sampling: Sampling, draws: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Each row's token by its draw from [0, 1), and the token's log-probability under the model
    as it is, not warped."""
    warpers = _warpers(sampling)
    parts = (
        logits.split(SORTED_AT_ONCE),
        torch.tensor(draws, dtype=torch.float64).split(SORTED_AT_ONCE),
    )
    tokens = torch.cat([_drawn(part, warpers, draw) for part, draw in zip(*parts, strict=True)])
    said = logits.float().gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), (said - log_normalizers(logits)).tolist()


def draw(seed: int, row: int, step: int) -> float:
    """A number from [0, 1), evenly spread, that follows from its arguments alone."""
    digest = hashlib.sha256(f"{seed}:{row}:{step}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def warped_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What tokens are drawn by, float64 [N, vocabulary]."""
    return _warped(logits, _warpers(sampling))


def _warped(logits: Tensor, warpers: Sequence[Any]) -> Tensor:
    scores = logits.float()
    for warper in warpers:
        scores = warper(None, scores)
    return scores.double().softmax(-1)


def _drawn(logits: Tensor, warpers: Sequence[Any], draws: Tensor) -> Tensor:
    sums = _warped(logits, warpers).cumsum(-1)
    total = sums[:, -1:]
    target = torch.minimum(draws.to(sums)[:, None] * total, total.nextafter(total.new_zeros(())))
    tokens = torch.searchsorted(sums, target, right=True)[:, 0]
    return tokens.clamp(max=logits.shape[-1] - 1)  # of a broken prompt: NaN is above all sums


def _warpers(sampling: Sampling) -> list[Any]:
    """As `generate` chains them; those that change nothing are left out."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = []
    if sampling.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers
