"""Greedy generation, rows of many prompts side by side, against transformers and whole rows."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ByT5Tokenizer

from encoders.packed.decoding_slots import DecodingRoom
from encoders.packed.padded_model import PaddedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.batch import Decoding
from orchestrator.domain.errors import InvalidInput
from orchestrator.inference.generation import (
    Generated,
    GenerationRow,
    decoding_note,
    generate,
)
from tests.encoders.conftest import LONGEST, make_model, packed, random_tokens
from tests.orchestrator.inference.plain_generation import by_transformers, by_whole_rows

EXACT = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox")
LENGTHS = {"first": 4, "middle": 3, "last": 2}


def rows_of(num_rows: int) -> list[GenerationRow]:
    """Contexts and answers of all lengths, their virtual tokens first, within and last."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(num_rows):
        name = tuple(LENGTHS)[number % 3]
        virtual = [-i - 1 for i in range(LENGTHS[name])]
        size = int(torch.randint(1, 30, (1,), generator=generator))
        text = torch.randint(3, 97, (size,), generator=generator).tolist()
        at = {"first": 0, "middle": size // 2, "last": size}[name]
        context = (*text[:at], *virtual, *text[at:])
        rows.append(GenerationRow(name, context, 1 + number % 12, number))
    return rows


ROWS = rows_of(16)


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    return {name: table.detach() for name, table in random_tokens(LENGTHS).items()}


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TextTokenizer(ByT5Tokenizer())


def ends_often(model: Any, tokenizer: TextTokenizer, tokens: dict[str, Tensor]) -> None:
    """Let the end token be one that rows do say, so that they end at all lengths."""
    tokenizer.eos_token_id = None
    said = [by_transformers(model, tokenizer, row, tokens).text for row in ROWS]
    letters = [letter for text in said for letter in text[2:]]
    tokenizer.eos_token_id = ord(max(set(letters), key=letters.count)) + 3


def same(found: Sequence[Generated], expected: Sequence[Generated]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.num_tokens) == (other.text, other.num_tokens)
        assert one.score == pytest.approx(other.score, rel=1e-3, abs=1e-30)


@pytest.mark.parametrize("name", EXACT)
def test_rows_side_by_side_equal_transformers_row_by_row(
    name: str, tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = make_model(name)
    ends_often(model, tokenizer, tokens)
    expected = [by_transformers(model, tokenizer, row, tokens) for row in ROWS]
    assert len({each.num_tokens for each in expected}) > 3
    same(generate(packed(model), tokenizer, ROWS, Decoding(), tokens), expected)


@pytest.mark.parametrize("max_sequences", [1, 3, 16])
def test_rows_side_by_side_equal_whole_rows_however_few_slots_there_are(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor], max_sequences: int
) -> None:
    model = make_model("llama")
    ends_often(model, tokenizer, tokens)
    model = packed(model)
    expected = [by_whole_rows(model, tokenizer, row, tokens) for row in ROWS]
    room = DecodingRoom(max_sequences)
    same(generate(model, tokenizer, ROWS, Decoding(), tokens, room=room), expected)


def test_a_row_that_has_its_answer_makes_room_at_once(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slots: beside a row of 9 tokens three of 3 go through the other slot. In fixed pairs they
    would take 8 + 2 steps (a row's first token comes with its entry)."""
    model = packed(make_model("llama"))
    tokenizer.eos_token_id = None
    sizes: list[int] = []
    step = model.step_logits

    def counted(token_ids: Tensor, positions: Tensor, layout: Any) -> Tensor:
        sizes.append(sum(len(part) for part in layout.parts))
        return step(token_ids, positions, layout)

    monkeypatch.setattr(model, "step_logits", counted)
    rows = [
        GenerationRow("first", (5, 6, 7, 8, 9, 10)[: 3 + n], 9 if n == 0 else 3) for n in range(4)
    ]
    room = DecodingRoom(max_sequences=2)
    found = generate(model, tokenizer, rows, Decoding(), tokens, room=room)
    assert [each.num_tokens for each in found] == [9, 3, 3, 3]
    assert sizes == [2] * 6 + [1] * 2


def test_the_order_of_rows_is_the_order_of_answers(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = packed(make_model("llama"))
    found = generate(model, tokenizer, ROWS, Decoding(), tokens)
    same(generate(model, tokenizer, ROWS[::-1], Decoding(), tokens), found[::-1])


def test_equal_rows_get_equal_answers(tokenizer: TextTokenizer, tokens: dict[str, Tensor]) -> None:
    model = packed(make_model("llama"))
    one, *others = generate(model, tokenizer, [ROWS[4]] * 5, Decoding(), tokens)
    assert others == [one] * 4


def test_a_base_that_cannot_be_packed_generates_the_same_and_says_how(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = make_model("gemma2")  # it caps its attention scores
    ends_often(model, tokenizer, tokens)
    expected = [by_transformers(model, tokenizer, row, tokens) for row in ROWS]
    padded = PaddedModel(model, "it caps its scores")
    same(generate(padded, tokenizer, ROWS, Decoding(), tokens), expected)
    assert decoding_note(padded).endswith("runs every row whole at each step: it caps its scores")
    assert "keeps keys and values" in decoding_note(packed(make_model("llama")))


def test_max_new_tokens_counts_before_the_rows_own(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = make_model("llama")
    tokenizer.eos_token_id = None
    expected = [by_transformers(model, tokenizer, r, tokens, max_new_tokens=7) for r in ROWS]
    decoding = Decoding(max_new_tokens=7)
    found = generate(packed(model), tokenizer, ROWS, decoding, tokens)
    assert {each.num_tokens for each in found} == {7}
    same(found, expected)


def test_an_answer_ends_where_the_bases_positions_end(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    tokenizer.eos_token_id = None
    row = GenerationRow("first", tuple(range(3, 3 + LONGEST - 5)), 20)
    (found,) = generate(packed(make_model("gpt2")), tokenizer, [row], Decoding(), tokens)
    assert found.num_tokens == 5


def test_a_stop_string_that_spans_tokens_ends_the_answer_before_it(
    tokenizer: TextTokenizer, tokens: dict[str, Tensor]
) -> None:
    model = packed(make_model("llama"))
    tokenizer.eos_token_id = None
    long = Decoding(max_new_tokens=12)
    plain = generate(model, tokenizer, ROWS, long, tokens)
    stop = max((each.text[3:5] for each in plain), key=lambda two: len(set(two.strip())))
    assert len(stop.strip()) == 2
    stopped = Decoding(max_new_tokens=12, stop_strings=(stop, "never said"))
    found = generate(model, tokenizer, ROWS, stopped, tokens)
    assert any(each.num_tokens < 12 for each in found)
    for one, whole in zip(found, plain, strict=True):
        assert stop not in one.text
        assert one.text == whole.text.partition(stop)[0].strip()
        assert one.score >= whole.score


@pytest.mark.parametrize("text", ["", 3])
def test_a_decoding_that_cannot_be_is_refused_before_any_row_is_run(
    tokenizer: TextTokenizer, text: Any
) -> None:
    with pytest.raises(InvalidInput, match="stop_strings"):
        generate(PaddedModel(make_model("gpt2")), tokenizer, [], Decoding(stop_strings=(text,)), {})


def test_no_rows_need_no_answers(tokenizer: TextTokenizer) -> None:
    assert generate(packed(make_model("gpt2")), tokenizer, [], Decoding(), {}) == []
