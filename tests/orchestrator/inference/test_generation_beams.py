"""Beam search, rows of many prompts side by side, against transformers' own, row by row."""

from typing import Any

import pytest
from torch import Tensor
from transformers import ByT5Tokenizer

from encoders.packed.decoding_slots import DecodingRoom
from encoders.packed.padded_model import PaddedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.batch import Decoding
from orchestrator.inference.generation import generate
from tests.encoders.conftest import make_model, packed, random_tokens
from tests.orchestrator.inference.plain_generation import by_transformers
from tests.orchestrator.inference.test_generation import LENGTHS, ROWS, ends_often, same

EXACT = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox")


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    return {name: table.detach() for name, table in random_tokens(LENGTHS).items()}


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TextTokenizer(ByT5Tokenizer())


def expected_beams(
    model: Any, tokenizer: TextTokenizer, tokens: dict[str, Tensor], num_beams: int, **changes: Any
) -> list[Any]:
    return [
        by_transformers(model, tokenizer, row, tokens, num_beams=num_beams, **changes)
        for row in ROWS
    ]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("num_beams", [2, 5])
def test_beams_equal_transformers(
    name: str, num_beams: int, tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = make_model(name)
    ends_often(model, tokenizer, tokens)
    expected = expected_beams(model, tokenizer, tokens, num_beams)
    greedy = [by_transformers(model, tokenizer, row, tokens) for row in ROWS]
    assert [each.text for each in expected] != [each.text for each in greedy]
    found = generate(packed(model), tokenizer, ROWS, Decoding(num_beams=num_beams), tokens)
    same(found, expected)


@pytest.mark.parametrize("max_sequences", [1, 9])
def test_rows_that_wait_for_room_give_the_same_beams(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor], max_sequences: int
) -> None:
    model = make_model("llama")
    ends_often(model, tokenizer, tokens)
    expected = expected_beams(model, tokenizer, tokens, 3)
    room = DecodingRoom(max_sequences)
    same(
        generate(packed(model), tokenizer, ROWS, Decoding(num_beams=3), tokens, room=room), expected
    )


def test_beams_of_a_base_that_gives_no_states_equal_transformers(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = make_model("gemma2")
    ends_often(model, tokenizer, tokens)
    expected = expected_beams(model, tokenizer, tokens, 3)
    found = generate(PaddedModel(model), tokenizer, ROWS, Decoding(num_beams=3), tokens)
    same(found, expected)


def test_long_beams_without_an_end_equal_transformers(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = make_model("llama")
    tokenizer.eos_token_id = None
    expected = expected_beams(model, tokenizer, tokens, 4, max_new_tokens=20)
    decoding = Decoding(num_beams=4, max_new_tokens=20)
    same(generate(packed(model), tokenizer, ROWS, decoding, tokens), expected)


def test_stop_strings_end_beams_as_a_criterion_of_transformers_does(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = make_model("llama")
    tokenizer.eos_token_id = None
    asked: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 10}
    plain = [by_transformers(model, tokenizer, row, tokens, **asked) for row in ROWS]
    stops = tuple({each.text[2] for each in plain if each.text[2].strip()})
    expected = [by_transformers(model, tokenizer, row, tokens, stops, **asked) for row in ROWS]
    assert any(each.num_tokens < 10 for each in expected)
    decoding = Decoding(stop_strings=stops, **asked)
    same(generate(packed(model), tokenizer, ROWS, decoding, tokens), expected)
