"""The search for one row's answer: a single sequence, greedy or drawn, or beams.

A search knows no model: it is given logits and says which token each of its sequences goes on with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from encoders.packed.decoding_beams import BeamSearch
from encoders.packed.decoding_choice import Sampling, choose_likeliest, choose_sampled, draw

Ids = tuple[int, ...]
IsOver = Callable[[Ids], bool]


class RowSearch(Protocol):
    """`tokens`: what each of its sequences goes on with. `parents`: which sequence each of them
    continues, None where each continues itself. `answer`: ids and the log-probability of them all,
    None while it is sought."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def parents(self) -> Sequence[int] | None: ...

    @property
    def answer(self) -> tuple[Ids, float] | None: ...


@dataclass
class SingleSearch:
    """One sequence; `seed` is the row's number."""

    is_over: IsOver
    seed: int = 0
    ids: Ids = ()
    log_prob: float = 0.0
    parents: None = field(default=None, init=False)
    answer: tuple[Ids, float] | None = field(default=None, init=False)

    @property
    def tokens(self) -> Sequence[int]:
        return self.ids[-1:]

    def take(self, token: int, log_prob: float) -> None:
        self.ids += (token,)
        self.log_prob += log_prob
        if self.is_over(self.ids):
            self.answer = self.ids, self.log_prob


class BeamedSearch:
    """Beams; all of them are alike until the first token."""

    def __init__(self, num_beams: int, is_over: IsOver) -> None:
        self._beams = BeamSearch(num_beams, is_over)
        self.parents: Sequence[int] | None = None

    @property
    def tokens(self) -> Sequence[int]:
        return [beam[-1] for beam in self._beams.running]

    @property
    def answer(self) -> tuple[Ids, float] | None:
        if not self._beams.is_done:
            return None
        return self._beams.best.ids, self._beams.best.log_prob

    def take(self, logits: Tensor) -> None:
        """`logits` [W, vocabulary], or [1, vocabulary] the first time."""
        parents = self._beams.advance(logits)
        moved = len(logits) > 1 and parents != list(range(len(parents)))
        self.parents = parents if moved else None


def advance_singles(
    searches: Sequence[SingleSearch], logits: Tensor, sampling: Sampling | None
) -> None:
    """Choose each sequence's next token from `logits` [N, vocabulary]."""
    if sampling is None:
        chosen = choose_likeliest(logits)
    else:
        draws = [draw(sampling.seed, each.seed, len(each.ids)) for each in searches]
        chosen = choose_sampled(logits, sampling, draws)
    for search, token, log_prob in zip(searches, *chosen, strict=True):
        search.take(token, log_prob)
