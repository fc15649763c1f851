"""Rows to ids and labels: exact on every kind of tokenizer, cut by the stated rule or refused."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import TemplateError
from encoders.text.row_encoder import IGNORED, RowEncoder
from encoders.text.template import Field, Prompt, Template, Text
from encoders.text.tokenization import TextTokenizer
from tests.encoders.tiny_tokenizers import byt5, byte_bpe, roberta_bpe, word_piece

KINDS: dict[str, Callable[[], Any]] = {"byt5": byt5, "byte_bpe": byte_bpe, "word_piece": word_piece}
TOKENIZERS = {kind: TextTokenizer(make()) for kind, make in KINDS.items()}
BPE, BERT, ROBERTA = TOKENIZERS["byte_bpe"], TOKENIZERS["word_piece"], TextTokenizer(roberta_bpe())
WORDS = ("the", "capital", "of", "Kenya", "sea", "?", "river", "é", "漢", "🙂", "  ", "\n", "isis")
FEW = settings(max_examples=60, deadline=None)

kinds = st.sampled_from(sorted(TOKENIZERS))
texts = st.lists(st.sampled_from(WORDS), max_size=6).flatmap(
    lambda words: st.sampled_from(["", " "]).map(lambda space: space.join(words))
)
rows = st.fixed_dictionaries({"x": texts, "y": texts})
pieces = st.lists(
    st.one_of(
        st.sampled_from([Field("x"), Field("y")]),
        st.builds(Prompt, st.integers(1, 4)),
        texts.filter(bool).map(Text),
    ),
    max_size=6,
).map(lambda some: [Prompt(2), *some])


def source_of(some: list[Any]) -> str:
    """The template text that reads as these pieces."""
    written = {Field: "{{{0.name}}}", Prompt: "{{prompt:{0.length}}}", Text: "{0.text}"}
    return "".join(written[type(piece)].format(piece) for piece in some)


def split_at_virtual(ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The runs of real tokens between virtual ones, without the empty ones."""
    runs: list[list[int]] = [[]]
    for token in ids:
        if token < 0:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tuple(run) for run in runs if run]


def runs_of(some: list[Any], row: dict[str, str]) -> list[str]:
    """The texts between virtual tokens, as a reader of the template sees them."""
    runs = [""]
    for piece in some:
        if isinstance(piece, Prompt):
            runs.append("")
        else:
            runs[-1] += row[piece.name] if isinstance(piece, Field) else piece.text
    return [run for run in runs if run]


def causal(source: str, tokenizer: TextTokenizer = BPE, **rule: Any) -> RowEncoder:
    return RowEncoder(Template.parse(source, "a"), tokenizer, **rule)


def masked(source: str, tokenizer: TextTokenizer = BERT, **rule: Any) -> RowEncoder:
    return RowEncoder(Template.parse(source, "a", mask=True), tokenizer, **rule)


# The paper's two forms.


def test_the_papers_form_for_causal_models() -> None:
    row = causal("{prompt:3}{sub}{prompt:3}{a}").encode_row({"sub": "Kenya", "a": "Kigali"})
    answer = BPE.encode("Kigali")
    context = (-1, -2, -3, *BPE.encode("Kenya"), -4, -5, -6)
    assert row.input_ids == context + answer
    assert row.labels == (IGNORED,) * len(context) + answer


def test_the_papers_form_for_masked_models() -> None:
    row = masked("{prompt:3}{sub}{prompt:3}{a}{prompt:3}.").encode_row(
        {"sub": "the sea", "a": "capital"}
    )
    cls, sep, mask = 2, 3, 4
    before = (cls, -1, -2, -3, *BERT.encode("the sea"), -4, -5, -6)
    after = (-7, -8, -9, *BERT.encode("."), sep)
    answer = BERT.encode("capital")
    assert row.input_ids == (*before, *[mask] * len(answer), *after)
    assert row.labels == (IGNORED,) * len(before) + answer + (IGNORED,) * len(after)


@pytest.mark.parametrize("make", [word_piece, roberta_bpe])
@pytest.mark.parametrize(
    "source", ["the capital of {x} is {a}, {y}.", "{a} is the capital.", "{x}{a}{y}", "{x}\n{a}"]
)
def test_a_masked_row_is_what_the_tokenizer_makes_of_its_text(make: Any, source: str) -> None:
    """Without virtual tokens, the ids are the tokenizer's own for the text with masks in it."""
    tokenizer = make()
    row = {"x": "Kenya", "y": "a city", "a": "Kigali"}
    template = Template.parse(source, "a", mask=True, needs_prompt=False)
    ids = RowEncoder(template, TextTokenizer(tokenizer)).encode_row(row)
    num_masks = ids.input_ids.count(tokenizer.mask_token_id)
    assert num_masks == len(tokenizer.tokenize(template.answer_prefix + "Kigali")) > 1
    text = source.format(x="Kenya", y="a city", a=tokenizer.mask_token * num_masks)
    assert list(ids.input_ids) == tokenizer(text)["input_ids"]


def test_a_masked_query_holds_as_many_masks_as_asked() -> None:
    encoder = masked("{prompt:1}{x} {a}!")
    assert encoder.encode_context({"x": "sea"}, 2) == (2, -1, *BERT.encode("sea"), 4, 4, 5, 3)


def test_text_that_reads_like_a_mask_gets_no_label() -> None:
    row = masked("{prompt:1}{x} {a}").encode_row({"x": "[MASK]", "a": "the"})
    assert [label for label in row.labels if label != IGNORED] == list(BERT.encode("the"))
    assert row.labels[-2] != IGNORED


# Exactness.


@FEW
@given(kinds, pieces, rows)
def test_ids_are_those_of_the_runs_tokenized_apart(
    kind: str, some: list[Any], row: dict[str, str]
) -> None:
    tokenizer = TOKENIZERS[kind]
    encoder = causal(source_of(some) + "{a}", tokenizer)
    template = encoder.template
    assert template.num_virtual_tokens == sum(p.length for p in some if isinstance(p, Prompt))
    shown = [*template.pieces, Text(template.answer_prefix)]
    assert runs_of(shown, row) == runs_of(some, row)  # the answer took white space, nothing else
    ids = encoder.encode_context(row)
    expected = [tokenizer.encode(run) for run in runs_of(list(template.pieces), row)]
    assert split_at_virtual(ids) == [run for run in expected if run]
    assert [t for t in ids if t < 0] == [-i - 1 for i in range(template.num_virtual_tokens)]


@FEW
@given(st.sampled_from(["byt5", "byte_bpe"]), pieces, rows, texts.filter(str.strip))
def test_decoding_the_runs_gives_the_text_back(
    kind: str, some: list[Any], row: dict[str, str], answer: str
) -> None:
    tokenizer = TOKENIZERS[kind]
    encoder = causal(source_of(some) + "{a}", tokenizer)
    ids = encoder.encode_row(row | {"a": answer}).input_ids
    told = "".join(tokenizer.decode(run) for run in split_at_virtual(ids))
    assert told == "".join(runs_of(some, row)) + answer


@FEW
@given(st.lists(st.sampled_from(["the sea", "river", "capital of kenya"]), min_size=1, max_size=4))
def test_word_pieces_come_back_as_words(words: list[str]) -> None:
    encoder = causal("{prompt:1}".join(["", *words]) + "{prompt:1}{a}", BERT)
    runs = split_at_virtual(encoder.encode_context({}))
    assert [BERT.decode(run) for run in runs] == words


@FEW
@given(st.sampled_from([BERT, ROBERTA]), pieces, pieces, rows, texts.filter(str.strip))
def test_masked_rows_are_exact_on_both_sides(
    tokenizer: TextTokenizer, some: list[Any], tail: list[Any], row: dict[str, str], answer: str
) -> None:
    encoder = masked(source_of(some) + "{a}" + source_of(tail), tokenizer)
    encoded = encoder.encode_row(row | {"a": answer})
    said = encoder.encode_answer(answer)
    labelled = [i for i, label in enumerate(encoded.labels) if label != IGNORED]
    first = labelled[0]
    assert labelled == list(range(first, first + len(said)))
    assert tuple(encoded.labels[i] for i in labelled) == said
    assert {encoded.input_ids[i] for i in labelled} == {tokenizer.mask_token_id}
    (opening,), (closing,) = tokenizer.surroundings
    assert (encoded.input_ids[0], encoded.input_ids[-1]) == (opening, closing)
    for side, ids in {
        encoder.template.pieces: encoded.input_ids[1:first],
        encoder.template.tail: encoded.input_ids[first + len(said) : -1],
    }.items():
        runs = [tokenizer.encode(run) for run in runs_of(list(side), row)]
        assert split_at_virtual(ids) == [run for run in runs if run]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_without_a_rule_contexts_are_the_templates_own(kind: str) -> None:
    tokenizer, row = TOKENIZERS[kind], {"x": "the capital ", "y": "Paris"}
    template = Template.parse("{x}of {y}{prompt:3}? {a}", "a")
    expected = template.encode_context(row, tokenizer.encode, tokenizer.bos_token_id)
    assert RowEncoder(template, tokenizer).encode_context(row) == expected


def test_the_opening_token_opens_a_causal_rows_first_text() -> None:
    ids = causal("{prompt:1}{x}{prompt:1}!{a}", ROBERTA).encode_context({"x": "sea"})
    assert ids == (-1, ROBERTA.bos_token_id, *ROBERTA.encode("sea"), -2, *ROBERTA.encode("!"))


# Truncation.


@settings(max_examples=150, deadline=None)
@given(kinds, pieces, rows, st.integers(1, 40), st.integers(0, 5))
def test_a_cut_row_is_the_row_with_the_longest_head_that_fits(
    kind: str, some: list[Any], row: dict[str, str], max_length: int, num_answer_tokens: int
) -> None:
    tokenizer = TOKENIZERS[kind]
    source = source_of([Field("x"), *some]) + "{a}"
    encoder = causal(source, tokenizer, max_length=max_length, truncate="x")
    plain, room = causal(source, tokenizer), max_length - num_answer_tokens
    whole = plain.encode_context(row)
    if len(whole) <= room:
        assert encoder.encode_context(row, num_answer_tokens) == whole
        return
    cuts = [0, *tokenizer.token_ends(row["x"])]
    heads = [plain.encode_context(row | {"x": row["x"][:cut]}) for cut in cuts]
    try:
        ids = encoder.encode_context(row, num_answer_tokens)
    except TemplateError:
        assert len(heads[0]) > room
        return
    assert len(ids) <= room
    kept = [i for i, head in enumerate(heads) if head == ids]
    assert any(i + 1 == len(heads) or len(heads[i + 1]) > room for i in kept)


def test_the_cut_field_loses_its_end_and_nothing_else_is_cut() -> None:
    encoder = causal("Q: {x}! {y}{prompt:2} {a}", max_length=14, truncate="x")
    row = {"x": "the river of the capital", "y": "what is it?", "a": "Paris"}
    encoded = encoder.encode_row(row)
    assert len(encoded.input_ids) == 14
    told = BPE.decode([token for token in encoded.input_ids if token >= 0])
    assert told == "Q: the river of! what is it? Paris"
    assert [token for token in encoded.input_ids if token < 0] == [-1, -2]
    assert encoded.labels == (IGNORED,) * 13 + BPE.encode(" Paris")


def test_a_cut_text_merges_with_what_follows_as_the_shorter_text_does() -> None:
    """Dropping tokens of the run would leave "the| |r|i|ver": ids no text is encoded to."""
    assert [BPE.decode([token]) for token in BPE.encode("the ri sea")] == [
        *("the", " ", "r", "i", " sea")
    ]
    encoder = causal("{x}ver{prompt:1}{a}", max_length=5, truncate="x")
    ids = encoder.encode_context({"x": "the ri sea sea"})
    assert [BPE.decode([token]) for token in ids[:-1]] == ["the", " river"]


@pytest.mark.parametrize("kind", ["byt5", "byte_bpe"])
@pytest.mark.parametrize("max_length", range(1, 14))
def test_no_character_is_halved(kind: str, max_length: int) -> None:
    tokenizer = TOKENIZERS[kind]
    encoder = causal("{x}{prompt:1}{a}", tokenizer, max_length=max_length, truncate="x")
    ids = encoder.encode_context({"x": "🙂漢é🙂"})
    told = tokenizer.decode(ids[:-1])
    assert "🙂漢é🙂".startswith(told)
    assert ids[:-1] == tokenizer.encode(told)
    assert max_length - len(ids) < 4  # a whole character more would not have fitted


def test_a_field_that_stands_twice_gives_way_in_both_places() -> None:
    encoder = causal("{x}|{x}{prompt:1}{a}", TOKENIZERS["byt5"], max_length=8, truncate="x")
    ids = encoder.encode_context({"x": "abcdefgh"})
    assert TOKENIZERS["byt5"].decode(ids[:-1]) == "abc|abc"


def test_a_field_behind_a_masked_answer_can_give_way() -> None:
    encoder = masked("{prompt:2}{a} is {x}.", max_length=9, truncate="x")
    ids = encoder.encode_context({"x": "the capital of the sea"}, 1)
    assert ids == (2, -1, -2, 4, *BERT.encode("is the capital."), 3)


def test_a_long_document_is_cut() -> None:
    encoder = causal("{x}{prompt:4} {a}", max_length=128, truncate="x")
    ids = encoder.encode_context({"x": "the river of the country flows to the sea. " * 5000}, 3)
    assert len(ids) == 125


def test_an_over_long_row_without_a_rule_says_what_to_do() -> None:
    encoder = causal("{x}{prompt:4}{a}", TOKENIZERS["byt5"], max_length=9)
    assert len(encoder.encode_row({"x": "abc", "a": "de"}).input_ids) == 9
    with pytest.raises(TemplateError, match=r"the row has 10 tokens \(virtual tokens and 2 for th"):
        encoder.encode_row({"x": "abcd", "a": "de"})
    with pytest.raises(TemplateError, match=r"at most 9 are allowed\. .*gives way \(truncate\)"):
        encoder.encode_context({"x": "abcd"}, 2)


def test_a_row_that_is_too_long_without_its_field_is_refused() -> None:
    encoder = causal("{x}12345{prompt:4}{a}", TOKENIZERS["byt5"], max_length=10, truncate="x")
    assert encoder.encode_row({"x": "abcd", "a": "z"}).input_ids[0] > 0
    with pytest.raises(TemplateError, match=r"without its field \{x\} the row still has 11 tokens"):
        encoder.encode_row({"x": "abcd", "a": "yz"})


@pytest.mark.parametrize("field", ["a", "y", "prompt", ""])
def test_only_a_field_beside_the_answer_can_be_cut(field: str) -> None:
    with pytest.raises(TemplateError, match=r"beside its answer are: \{x\}"):
        causal("{x}{prompt:1}{a}", max_length=9, truncate=field)


def test_a_field_to_cut_needs_a_length() -> None:
    with pytest.raises(TemplateError, match=r"\{x\} is to be cut, but max_length is not given"):
        causal("{x}{prompt:1}{a}", truncate="x")


# Answers and refusals.


def test_an_answer_may_close_with_the_end_token() -> None:
    encoder = causal("{prompt:1} {a}")
    row = encoder.encode_row({"a": "Paris"}, ends_answer=True)
    assert row.labels == (IGNORED, *BPE.encode(" Paris"), BPE.eos_token_id)
    assert row.input_ids == (-1, *row.labels[1:])


def test_where_there_is_no_end_token_none_is_made_up() -> None:
    with pytest.raises(TemplateError, match="this tokenizer has no end token"):
        causal("{prompt:1}{a}", BERT).encode_row({"a": "the"}, ends_answer=True)
    with pytest.raises(TemplateError, match="a masked answer has no end token"):
        masked("{prompt:1}{a}").encode_row({"a": "the"}, ends_answer=True)


def test_a_masked_answer_needs_a_mask_token() -> None:
    with pytest.raises(TemplateError, match="no mask token; a masked answer needs a masked lang"):
        masked("{prompt:1}{a}", BPE)


def test_a_row_without_its_answer_or_field_is_told() -> None:
    encoder = causal("{x}{prompt:1}{a}", max_length=9, truncate="x")
    with pytest.raises(TemplateError, match=r"lacks the field 'a'; it has \{x\}"):
        encoder.encode_row({"x": ""})
    with pytest.raises(TemplateError, match=r"lacks the field 'x'; it has \{a\}"):
        encoder.encode_row({"a": "b"})
    with pytest.raises(TemplateError, match="the answer '' has no tokens"):
        encoder.encode_row({"x": "", "a": ""})


def test_encoding_rows_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, encoders.text.row_encoder; print({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
