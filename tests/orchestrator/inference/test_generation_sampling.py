"""Sampled answers follow from the seed and the row's number, not from neighbours."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import ByT5Tokenizer

from encoders.packed.decoding_choice import Sampling, warped_probabilities
from encoders.packed.decoding_slots import DecodingRoom
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.batch import Decoding
from orchestrator.inference.generation import generate
from tests.encoders.conftest import make_model, packed, random_tokens
from tests.orchestrator.inference.test_generation import LENGTHS, rows_of

ROWS = rows_of(32)
DRAWN = Decoding(do_sample=True, temperature=1.3, top_k=40, top_p=0.95, seed=7)


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    return {name: table.detach() for name, table in random_tokens(LENGTHS).items()}


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TextTokenizer(ByT5Tokenizer())


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return packed(make_model("llama"))


def test_a_row_says_the_same_alone_and_among_others_in_any_order(
    model: PackedModel, tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    together = generate(model, tokenizer, ROWS, DRAWN, tokens)
    turned = generate(model, tokenizer, ROWS[::-1], DRAWN, tokens, room=DecodingRoom(5))
    assert len({each.text for each in together}) > 20
    for row, one, other in zip(ROWS, together, turned[::-1], strict=True):
        (alone,) = generate(model, tokenizer, [row], DRAWN, tokens)
        assert alone.text == one.text == other.text
        assert alone.score == pytest.approx(one.score, rel=1e-4)


def test_another_seed_or_another_row_number_says_something_else(
    model: PackedModel, tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    row = replace(ROWS[0], max_new_tokens=12)
    rows = [replace(row, seed=seed) for seed in (1, 2, 3)]
    texts = [each.text for each in generate(model, tokenizer, rows, DRAWN, tokens)]
    others = generate(model, tokenizer, rows, replace(DRAWN, seed=8), tokens)
    assert len({*texts, *(each.text for each in others)}) == 6


def test_drawn_tokens_are_spread_as_transformers_warpers_say(
    model: PackedModel, tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    """2,000 rows of one context: a chi-squared test of their first tokens, at five deviations."""
    context, num_rows = (5, 9, -1, -2, -3, -4), 2000
    decoding = Decoding(do_sample=True, temperature=0.7, top_k=12, top_p=0.8, max_new_tokens=1)
    row = replace(ROWS[0], prompt="first", context=context)
    rows = [replace(row, seed=seed) for seed in range(num_rows)]
    logits = model.logits(pack([PackedRow("first", context)], {"first": 4}), tokens)
    probabilities = warped_probabilities(logits[:1], Sampling(0.7, 12, 0.8))[0]
    said = Counter(each.score for each in generate(model, tokenizer, rows, decoding, tokens))

    plain = logits[0].softmax(-1)
    possible = probabilities.nonzero()[:, 0].tolist()
    assert 3 < len(possible) <= 12
    counts = [
        sum(count for score, count in said.items() if abs(score - float(plain[token])) < 1e-7)
        for token in possible
    ]
    assert sum(counts) == num_rows  # nothing else was said; scores are the model's own
    expected = probabilities[possible] * num_rows
    chi_squared = float(((torch.tensor(counts) - expected) ** 2 / expected).sum())
    freedom = len(possible) - 1
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


def test_a_broken_prompt_is_drawn_from_without_harm_to_others(
    model: PackedModel, tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    expected = generate(model, tokenizer, ROWS[:6], DRAWN, tokens)
    tokens["middle"] = tokens["middle"] * float("nan")
    found = generate(model, tokenizer, ROWS[:6], DRAWN, tokens)
    for row, one, other in zip(ROWS, found, expected, strict=False):
        if row.prompt != "middle":
            assert one == other
