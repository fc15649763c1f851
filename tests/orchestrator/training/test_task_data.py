import pytest
from transformers import ByT5Tokenizer

from encoders.text.chat_markup import ChatMarkup
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.errors import InvalidData
from orchestrator.training.task_data import (
    Example,
    encode_task,
    ended,
    max_row_length,
    ranking_rows,
    training_rows,
)
from tests.orchestrator.training.conftest import MakeData, Rows, make_datasets, make_spec

END = 1


def rows(*pairs: tuple[str, str]) -> Rows:
    return [{"word": word, "colour": colour} for word, colour in pairs]


TWO = rows(("a1", "red"), ("b2", "blue"))


def refusal(tokenizer: TextTokenizer, max_length: int = 256, **arguments: object) -> str:
    splits = {name: arguments.pop(name) for name in ("train", "eval", "test") if name in arguments}
    with pytest.raises(InvalidData) as caught:
        encode_task(
            make_spec(**arguments),
            make_datasets(**splits),  # type: ignore[arg-type]
            tokenizer,
            max_length,
        )
    return str(caught.value)


def test_rows_become_token_ids(make_data: MakeData, tokenizer: TextTokenizer) -> None:
    data = make_data(make_spec(), train=TWO, eval=TWO[:1])
    assert data.candidates == ("blue", "red")
    assert data.candidate_ids == (tokenizer.encode(" blue"), tokenizer.encode(" red"))
    virtual = (-1, -2, -3, -4)
    first = Example((*tokenizer.encode("a1:"), *virtual), tokenizer.encode(" red"), 1)
    second = Example((*tokenizer.encode("b2:"), *virtual), tokenizer.encode(" blue"), 0)
    assert data.splits == {"train": (first, second), "eval": (first,)}
    assert data.num_rows == {"train": 2, "eval": 1}
    assert data.mean_positions == (7 + 4 + 7 + 5) / 2
    assert not data.ends_answer


def test_the_reported_rows_are_test_where_given(make_data: MakeData) -> None:
    assert (
        make_data(make_spec(), train=TWO, eval=TWO).held_out
        == make_data(make_spec(), train=TWO, eval=TWO).splits["eval"]
    )
    data = make_data(make_spec(), train=TWO, eval=TWO, test=TWO[:1])
    assert len(data.held_out) == 1


def test_candidates_are_the_answers_of_all_splits_sorted(make_data: MakeData) -> None:
    data = make_data(
        make_spec(), train=rows(("a", "red")), eval=rows(("b", "blue")), test=rows(("c", "green"))
    )
    assert data.candidates == ("blue", "green", "red")


def test_given_candidates_keep_their_order_and_may_be_more(make_data: MakeData) -> None:
    data = make_data(make_spec(candidates=["red", "green", "blue"]), train=TWO, eval=TWO)
    assert data.candidates == ("red", "green", "blue")
    assert [example.candidate for example in data.splits["train"]] == [0, 2]


def test_an_answer_outside_the_given_candidates_names_its_line(tokenizer: TextTokenizer) -> None:
    message = refusal(tokenizer, candidates=["red", "green"], train=TWO, eval=TWO)
    assert message == (
        "train.jsonl:2: the answer 'blue' is not among the spec's candidates ['red', 'green']"
    )


@pytest.mark.parametrize(
    ("answers", "ends"),
    [
        (("red", "blue"), False),
        (("red", "redder"), True),
        (("Niger", "Nigeria"), True),
        (("a", "b", "ab"), True),
        (("ab", "ba"), False),
    ],
)
def test_answers_are_ended_where_one_opens_another(
    make_data: MakeData, answers: tuple[str, ...], ends: bool
) -> None:
    data = make_data(make_spec(), train=rows(*(("x", answer) for answer in answers)))
    assert data.ends_answer is ends
    assert all((ids[-1] == END) is ends for ids in data.candidate_ids)
    assert all((each.answer[-1] == END) is ends for each in data.splits["train"])


@pytest.mark.parametrize("metric", ["exact_match", "loss"])
def test_answers_are_ended_where_they_are_generated(make_data: MakeData, metric: str) -> None:
    data = make_data(make_spec(evaluation={"metric": metric}), train=TWO)
    assert data.ends_answer


def test_a_base_without_an_end_token_cannot_generate(tokenizer: TextTokenizer) -> None:
    class Endless:
        eos_token_id = None

    with pytest.raises(InvalidData, match="has no end token"):
        ended([(1, 2)], Endless())  # type: ignore[arg-type]


def test_an_over_long_row_names_file_line_length_and_limit(tokenizer: TextTokenizer) -> None:
    long = [*TWO, {"word": "a" * 250, "colour": "blue"}]
    message = refusal(tokenizer, train=TWO, eval=long)
    assert "eval.jsonl:3: the row has 260 tokens" in message
    assert "at most 256 are allowed" in message
    assert "Shorten the row" in message


def test_the_limit_is_exact(make_data: MakeData, tokenizer: TextTokenizer) -> None:
    make_data(make_spec(), max_length=12, train=TWO, eval=TWO)
    assert "train.jsonl:1: the row has 12 tokens" in refusal(tokenizer, 11, train=TWO, eval=TWO)


def test_the_longest_candidate_must_fit_behind_every_ranked_row(tokenizer: TextTokenizer) -> None:
    data = rows(("a" * 12, "red"), ("b", "x" * 20))
    assert "train.jsonl:1: the row has 38 tokens" in refusal(tokenizer, 37, train=data, eval=data)


def test_a_generated_answer_must_fit_behind_its_own_row_alone(make_data: MakeData) -> None:
    data = rows(("a" * 12, "red"), ("b", "x" * 20))
    spec = make_spec(evaluation={"metric": "exact_match"})
    make_data(spec, max_length=28, train=data, eval=data)


def test_a_template_field_that_the_data_lacks_is_named(tokenizer: TextTokenizer) -> None:
    message = refusal(tokenizer, template="{wrd}{prompt:4} {colour}", train=TWO, eval=TWO)
    assert "train.jsonl:1: the row lacks the field 'wrd'; it has {word}, {colour}" in message


@pytest.mark.parametrize("answer", ["", " ", "\t"])
def test_an_empty_answer_names_its_line(tokenizer: TextTokenizer, answer: str) -> None:
    bad = [*TWO, {"word": "c", "colour": answer}]
    assert "eval.jsonl:3: the answer is empty" in refusal(tokenizer, train=TWO, eval=bad)


def test_an_empty_candidate_is_refused(tokenizer: TextTokenizer) -> None:
    message = refusal(tokenizer, candidates=["red", "blue", ""], train=TWO, eval=TWO)
    assert message == "task colour: the answer '' has no tokens"


def test_ranking_needs_two_answers_and_not_too_many(tokenizer: TextTokenizer) -> None:
    one = rows(("a", "red"))
    assert "the data has 1 distinct answers" in refusal(tokenizer, train=one, eval=one)
    many = rows(*((f"w{i}", f"c{i}") for i in range(1025)))
    message = refusal(tokenizer, train=many, eval=TWO)
    assert "the data has 1027 distinct answers" in message
    assert "use the metric exact_match" in message
    given = [f"c{i}" for i in range(1025)]
    message = refusal(tokenizer, candidates=given, train=many[:2], eval=many[:2])
    assert "the spec has 1025 distinct answers" in message


def test_other_metrics_take_any_number_of_answers(make_data: MakeData) -> None:
    one = rows(("a", "red"))
    data = make_data(make_spec(evaluation={"metric": "loss"}), train=one, eval=one)
    assert data.candidates == ("red",)


def test_a_row_whose_context_is_empty_is_refused(tokenizer: TextTokenizer) -> None:
    manual = {"metric": "loss", "manual_prompt": "{word} {colour}"}
    empty = rows(("", "red"))
    message = refusal(tokenizer, evaluation=manual, train=TWO, eval=empty)
    assert message == "eval.jsonl:1: nothing stands before the answer"


def test_the_manual_prompt_is_encoded_for_the_reported_rows(
    make_data: MakeData, tokenizer: TextTokenizer
) -> None:
    spec = make_spec(evaluation={"manual_prompt": "the colour of {word} is: {colour}"})
    data = make_data(spec, train=TWO, eval=TWO, test=TWO[:1])
    expected = Example(tokenizer.encode("the colour of a1 is:"), tokenizer.encode(" red"), 1)
    assert data.manual == (expected,)
    assert data.manual_candidate_ids == (tokenizer.encode(" blue"), tokenizer.encode(" red"))


def test_an_over_long_manual_row_is_refused_too(tokenizer: TextTokenizer) -> None:
    manual = {"manual_prompt": f"{'x' * 100}{{word}} {{colour}}"}
    message = refusal(tokenizer, 60, evaluation=manual, train=TWO, eval=TWO)
    assert "eval.jsonl:1: the row has 107 tokens" in message


@pytest.mark.parametrize(("asked", "expected"), [(None, 256), (100, 100), (256, 256)])
def test_the_longest_row_is_the_specs_or_the_bases(asked: int | None, expected: int) -> None:
    data = {"train": "t", "eval": "e", "max_length": asked}
    assert max_row_length(make_spec(data=data), 256) == expected


def test_a_limit_beyond_the_base_is_refused() -> None:
    spec = make_spec(data={"train": "t", "eval": "e", "max_length": 257})
    with pytest.raises(InvalidData, match=r"data.max_length is 257, but the base tiny takes at m"):
        max_row_length(spec, 256)


def test_examples_become_rows(make_data: MakeData) -> None:
    data = make_data(make_spec(), train=TWO, eval=TWO)
    examples = data.splits["train"]
    trained, ranked = training_rows("t", examples), ranking_rows(None, examples, ((1,), (2,)))
    assert [row.prompt for row in trained] == ["t", "t"]
    assert [row.answers for row in trained] == [(each.answer,) for each in examples]
    assert [row.prompt for row in ranked] == [None, None]
    assert [row.answers for row in ranked] == [((1,), (2,))] * 2


# Rows that are cut.

LONG = rows(("a" * 30, "red"), ("b2", "blue"))
CUT = {"train": "t", "eval": "e", "max_length": 20, "truncate": "word"}


def test_a_long_row_is_cut_to_leave_room_for_any_candidate(
    make_data: MakeData, tokenizer: TextTokenizer
) -> None:
    data = make_data(make_spec(data=CUT), max_length=20, train=LONG, eval=TWO)
    long, short = data.splits["train"]
    assert long.context == (*tokenizer.encode("a" * 10 + ":"), -1, -2, -3, -4)  # and " blue"
    assert short.context == (*tokenizer.encode("b2:"), -1, -2, -3, -4)


def test_generated_rows_are_cut_alike_whatever_their_answer(make_data: MakeData) -> None:
    """Inference does not know the answer: the room kept free is that of the longest."""
    data = rows(("a" * 30, "red"), ("a" * 30, "blue"))
    spec = make_spec(data=CUT, evaluation={"metric": "exact_match"})
    first, second = make_data(spec, max_length=20, train=data).splits["train"]
    assert first.context == second.context
    assert len(second.context) + len(second.answer) == 20


def test_the_manual_prompt_is_cut_by_the_same_rule(
    make_data: MakeData, tokenizer: TextTokenizer
) -> None:
    spec = make_spec(data=CUT, evaluation={"manual_prompt": "what is {word}? {colour}"})
    data = make_data(spec, max_length=20, train=TWO, eval=LONG)
    assert data.manual[0].context == tokenizer.encode("what is aaaaaa?")


def test_a_manual_prompt_without_the_field_is_not_cut(
    make_data: MakeData, tokenizer: TextTokenizer
) -> None:
    spec = make_spec(data=CUT, evaluation={"manual_prompt": "a colour: {colour}"})
    assert make_data(spec, max_length=20).manual[0].context == tokenizer.encode("a colour:")
    message = refusal(tokenizer, 12, data=CUT, evaluation={"manual_prompt": "a colour: {colour}"})
    assert "the row has 14 tokens" in message


def test_a_row_that_is_too_long_without_its_field_names_its_line(tokenizer: TextTokenizer) -> None:
    message = refusal(tokenizer, 9, data=CUT, train=LONG, eval=TWO)
    assert "train.jsonl:1: without its field {word} the row still has 10 tokens" in message


# Chats.


@pytest.fixture
def chat_tokenizer() -> TextTokenizer:
    slow = ByT5Tokenizer()
    slow.chat_template = "<extra_id_0>user:{{ messages[0]['content'] }}<extra_id_1>"
    return TextTokenizer(slow)


def test_a_chat_stands_around_rows_and_manual_prompt(
    chat_tokenizer: TextTokenizer, tokenizer: TextTokenizer
) -> None:
    spec = make_spec(chat=True, evaluation={"manual_prompt": "what is {word}? {colour}"})
    data = encode_task(spec, make_datasets(train=TWO, eval=TWO), chat_tokenizer, 256)
    assert data.chat == ChatMarkup("<extra_id_0>user:", "<extra_id_1>")
    first = data.splits["train"][0]
    assert first.context == (259, *tokenizer.encode("user:a1:"), -1, -2, -3, -4, 260)
    assert first.answer == tokenizer.encode("red")
    assert data.candidate_ids == (tokenizer.encode("blue"), tokenizer.encode("red"))
    assert data.manual[0].context == (259, *tokenizer.encode("user:what is a1?"), 260)
    assert data.manual_candidate_ids == data.candidate_ids


def test_without_chat_there_is_no_markup(chat_tokenizer: TextTokenizer) -> None:
    data = encode_task(make_spec(), make_datasets(), chat_tokenizer, 256)
    assert data.chat is None
    assert 259 not in data.splits["train"][0].context


def test_a_base_without_a_chat_template_cannot_chat(tokenizer: TextTokenizer) -> None:
    message = refusal(tokenizer, chat=True)
    assert message.startswith("task colour: chat: the base's tokenizer has no chat template")
