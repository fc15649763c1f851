"""Beam search on tables of made-up logits; test_generation_beams.py compares with transformers."""

import pytest
import torch

from encoders.packed.decoding_beams import BeamSearch

END = 3


def is_over(ids: tuple[int, ...]) -> bool:
    return ids[-1] == END or len(ids) == 3


def logits(*shares: list[float]) -> torch.Tensor:
    return torch.tensor(shares).log()


def test_a_beam_that_is_behind_at_first_may_win() -> None:
    search = BeamSearch(2, is_over)
    assert search.advance(logits([0.6, 0.4, 0.0, 0.0])) == [0, 0]
    assert search.running == [(0,), (1,)]
    parents = search.advance(logits([0.4, 0.3, 0.3, 0.0], [0.01, 0.01, 0.98, 0.0]))
    assert (search.running, parents) == ([(1, 2), (0, 0)], [1, 0])
    search.advance(logits([0.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.0, 0.0]))
    assert search.is_done
    assert search.best.ids == (1, 2, END)
    assert search.best.log_prob == pytest.approx(float(torch.tensor(0.4 * 0.98).log()), abs=1e-5)
    assert search.best.score == pytest.approx(search.best.log_prob / 3)


def test_a_finished_beam_ends_the_search_only_when_enough_have_finished() -> None:
    search = BeamSearch(2, is_over)
    search.advance(logits([0.1, 0.1, 0.2, 0.6]))
    assert not search.is_done
    assert search.running == [(2,), (0,)] or search.running == [(2,), (1,)]


def test_an_end_among_the_less_likely_half_does_not_count() -> None:
    search = BeamSearch(2, is_over)
    search.advance(logits([0.4, 0.3, 0.2, 0.1]))
    assert search.running == [(0,), (1,)]
    search.advance(logits([0.5, 0.48, 0.01, 0.01], [0.5, 0.4, 0.0, 0.1]))
    search.advance(logits([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]))
    assert search.is_done
    assert len(search.best.ids) == 3
