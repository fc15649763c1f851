"""Where an answer ends, and its text."""

import pytest
from transformers import ByT5Tokenizer

from encoders.text.tokenization import TextTokenizer
from orchestrator.inference.answer_end import AnswerEnd

TOKENIZER = TextTokenizer(ByT5Tokenizer())
END = TOKENIZER.eos_token_id
assert END is not None


def said(text: str) -> tuple[int, ...]:
    return TOKENIZER.encode(text)


def reached(end: AnswerEnd, ids: tuple[int, ...]) -> int:
    """How many tokens there are when the end is seen first; 0: never."""
    return next((n for n in range(1, len(ids) + 1) if end.is_reached(ids[:n])), 0)


def test_the_end_token_ends_an_answer_and_is_no_part_of_it() -> None:
    end = AnswerEnd(TOKENIZER)
    assert reached(end, (*said(" red\n"), END)) == 6
    assert end.text((*said(" red\n"), END)) == "red"
    assert reached(end, said("red")) == 0


@pytest.mark.parametrize(
    ("stops", "text", "num_tokens", "answer"),
    [
        (("###",), "red###blue", 6, "red"),
        (("\n",), "red\nblue", 4, "red"),
        (("ed", "r"), "a red", 3, "a"),
        (("d bl", "ed b"), "red blue", 5, "r"),
        (("\n",), "\nred", 1, ""),
        (("é",), "caféx", 5, "caf"),
        (("z",), "red", 0, "red"),
    ],
)
def test_a_stop_string_ends_an_answer_as_soon_as_it_is_complete(
    stops: tuple[str, ...], text: str, num_tokens: int, answer: str
) -> None:
    end = AnswerEnd(TOKENIZER, stops)
    ids = said(text)
    assert reached(end, ids) == num_tokens
    assert end.text(ids[: num_tokens or len(ids)]) == answer


def test_an_answer_that_only_ends_says_nothing() -> None:
    assert AnswerEnd(TOKENIZER, ("a",)).text((END,)) == ""
