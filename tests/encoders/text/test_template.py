from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import TemplateError
from encoders.text.template import MAX_VIRTUAL_TOKENS, Field, Prompt, Special, Template, Text


def characters(text: str) -> Sequence[int]:
    """A tokenizer whose tokens are code points."""
    return [ord(character) for character in text]


def encode(source: str, row: dict[str, str], answer: str = "a", bos: int | None = None) -> list:
    """The encoded context: characters, and numbers for virtual tokens and the opening token."""
    template = Template.parse(source, answer, needs_prompt=False)
    ids = template.encode_context(row, characters, bos)
    return [chr(i) if i > 0 and i != bos else i for i in ids]


def test_pieces_of_an_infix_template() -> None:
    template = Template.parse("{country}: {prompt:3} {a}", "a")
    assert template.pieces == (Field("country"), Text(": "), Prompt(3))
    assert template.answer_prefix == " "
    assert template.fields == ("country",)
    assert template.num_virtual_tokens == 3


def test_prompt_may_open_the_template() -> None:
    assert encode("{prompt:2}{x}:{a}", {"x": "hi"}) == [-1, -2, "h", "i", ":"]


def test_prompt_may_close_the_context() -> None:
    assert encode("{x}{prompt:2}{a}", {"x": "hi"}) == ["h", "i", -1, -2]


def test_virtual_tokens_are_numbered_through_several_prompts() -> None:
    expected = [-1, "h", -2, -3, "h", -4]
    assert encode("{prompt:1}{x}{prompt:2}{x}{prompt:1} {a}", {"x": "h"}) == expected


def test_text_on_two_sides_of_a_prompt_is_tokenized_apart() -> None:
    seen: list[str] = []

    def tokenize(text: str) -> Sequence[int]:
        seen.append(text)
        return [1]

    Template.parse("q {x} is{prompt:1}so {y}:{a}", "a").encode_context(
        {"x": "1", "y": "2"}, tokenize
    )
    assert seen == ["q 1 is", "so 2:"]


def test_an_empty_field_leaves_no_token() -> None:
    assert encode("{x}{prompt:1}{y}{a}", {"x": "", "y": ""}) == [-1]


@pytest.mark.parametrize(
    ("source", "bos", "expected"),
    [
        ("{x}{prompt:1}!{a}", 7, [7, "h", -1, "!"]),
        ("{prompt:1}{x}!{a}", 7, [-1, 7, "h", "!"]),
        ("{prompt:1}{x}!{a}", 0, [-1, 0, "h", "!"]),
        ("{prompt:1}{a}", 7, [-1]),
    ],
)
def test_the_opening_token_opens_the_first_text_once(
    source: str, bos: int, expected: list[object]
) -> None:
    assert encode(source, {"x": "h"}, bos=bos) == expected


def test_doubled_braces_are_braces() -> None:
    assert "".join(map(str, encode("{{{x}}} {{prompt:1}}{a}", {"x": "h"}))) == "{h} {prompt:1}"


@given(st.text(), st.text())
def test_field_values_are_taken_as_they_are(first: str, second: str) -> None:
    expected = [*characters(first), -1, *characters(second)]
    template = Template.parse("{x}{prompt:1}{y}{a}", "a")
    assert list(template.encode_context({"x": first, "y": second}, characters)) == expected


@given(st.text(alphabet="{}:ab prompt1", max_size=30))
def test_any_text_parses_or_is_refused_with_a_template_error(source: str) -> None:
    try:
        template = Template.parse(source + "{a}", "a", needs_prompt=False)
    except TemplateError:
        return
    row = dict.fromkeys(template.fields, "v")
    assert template.encode_context(row, characters)


@pytest.mark.parametrize(
    ("source", "prefix", "pieces"),
    [
        ("{prompt:1} {a}", " ", (Prompt(1),)),
        ("{prompt:1}: {a}", " ", (Prompt(1), Text(":"))),
        ("{prompt:1}:\n\n{a}", "\n\n", (Prompt(1), Text(":"))),
        ("{prompt:1}{a}", "", (Prompt(1),)),
        ("{prompt:1}x {y}{a}", "", (Prompt(1), Text("x "), Field("y"))),
    ],
)
def test_white_space_before_the_answer_belongs_to_the_answer(
    source: str, prefix: str, pieces: tuple[object, ...]
) -> None:
    template = Template.parse(source, "a")
    assert template.answer_prefix == prefix
    assert template.pieces == pieces
    assert template.encode_answer("Asia", characters) == tuple(characters(prefix + "Asia"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{prompt:2}{x}", r"the answer field \{a\} is not in the template .*it has \{x\}"),
        ("{prompt:2}", "it has no fields"),
        ("", "it has no fields"),
        ("{prompt:2}{a}.", r"\{a\} must come last, and once"),
        ("{prompt:2}{a}{x}", "must come last, and once"),
        ("{prompt:2}{a}{prompt:1}", "must come last, and once"),
        ("{prompt:2}{a}{a}", "must come last, and once"),
        ("{x}{a}", r"has no virtual tokens; add \{prompt:n\}"),
        ("{prompt}{a}", r"\{prompt\} at character 1 .*allowed are \{field\}, \{prompt:n\}"),
        ("ab{prompt:0}{a}", r"\{prompt:0\} at character 3"),
        ("{prompt:-1}{a}", r"\{prompt:-1\} at character 1"),
        ("{prompt:}{a}", r"\{prompt:\}"),
        ("{prompt:1.5}{a}", r"\{prompt:1.5\}"),
        ("{prompt:²}{a}", r"\{prompt:²\}"),
        ("{prompt:4097}{a}", f"4097 virtual tokens; at most {MAX_VIRTUAL_TOKENS}"),
        ("{prompt:4000}{prompt:97}{a}", "4097 virtual tokens"),
        ("{prompt:999999}{a}", r"\{prompt:999999\}"),
        ("{}{a}", r"\{\} at character 1"),
        ("{x y}{a}", r"\{x y\} at character 1"),
        ("{x!r}{a}", r"\{x!r\}"),
        ("{x.y}{a}", r"\{x.y\}"),
        ("{x[0]}{a}", r"\{x\[0\]\}"),
        ("{1x}{a}", r"\{1x\}"),
        ("{x:3}{a}", r"\{x:3\}"),
        ("{x{prompt:1}{a}", "an unmatched brace at character 1"),
        ("x}{prompt:1}{a}", "an unmatched brace at character 2"),
        ("{prompt:1}{a", "an unmatched brace at character 11"),
    ],
)
def test_a_wrong_template_is_refused_with_the_place_and_the_rule(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        Template.parse(source, "a")


def test_a_template_without_a_prompt_needs_something_before_the_answer() -> None:
    assert Template.parse("say {a}", "a", needs_prompt=False).num_virtual_tokens == 0
    with pytest.raises(TemplateError, match="nothing stands before the answer"):
        Template.parse(" {a}", "a", needs_prompt=False)


def test_a_row_that_lacks_a_field_is_told_what_it_has() -> None:
    template = Template.parse("{x}{prompt:1}{a}", "a")
    with pytest.raises(TemplateError, match=r"lacks the field 'x'; it has \{y\}, \{z\}"):
        template.encode_context({"y": "", "z": ""}, characters)
    with pytest.raises(TemplateError, match="it has no fields"):
        template.encode_context({}, characters)


def test_the_answer_is_no_field_of_the_context() -> None:
    assert Template.parse("{x} {y} {x}{prompt:1}{a}", "a").fields == ("x", "y")


def test_an_answer_without_tokens_is_refused() -> None:
    template = Template.parse("{prompt:1} {a}", "a")
    with pytest.raises(TemplateError, match="the answer '' has no tokens"):
        template.encode_answer("", characters)
    with pytest.raises(TemplateError, match="the answer 'x' has no tokens"):
        template.encode_answer("x", lambda text: [])


# The form with a masked answer.


def test_pieces_of_a_template_with_a_masked_answer() -> None:
    template = Template.parse("{prompt:3}{x}{prompt:3} {a}{prompt:2} of {y}.", "a", mask=True)
    assert template.pieces == (Prompt(3), Field("x"), Prompt(3))
    assert template.answer_prefix == " "
    assert template.tail == (Prompt(2), Text(" of "), Field("y"), Text("."))
    assert template.fields == ("x", "y")
    assert template.num_virtual_tokens == 8
    assert template.mask


def test_virtual_tokens_are_counted_on_behind_a_masked_answer() -> None:
    template = Template.parse("{prompt:2}{x}{a}{y}{prompt:1}!{prompt:1}", "a", mask=True)
    row = {"x": "h", "y": "o"}
    assert template.encode_context(row, characters) == (-1, -2, ord("h"))
    assert template.encode_tail(row, characters) == (ord("o"), -3, ord("!"), -4)


def test_a_masked_answer_may_stand_anywhere_but_once() -> None:
    assert Template.parse("{a} is it{prompt:1}", "a", mask=True).pieces == ()
    assert Template.parse("it is{prompt:1} {a}", "a", mask=True).tail == ()
    with pytest.raises(TemplateError, match=r"\{a\} must stand once in the template .* 2 times"):
        Template.parse("{a}{prompt:1}{a}", "a", mask=True)
    with pytest.raises(TemplateError, match="is not in the template"):
        Template.parse("{prompt:1}{x}", "a", mask=True)
    with pytest.raises(TemplateError, match="has no virtual tokens"):
        Template.parse("{x}{a}.", "a", mask=True)
    with pytest.raises(TemplateError, match="4097 virtual tokens"):
        Template.parse("{prompt:4000}{a}{prompt:97}", "a", mask=True)
    with pytest.raises(TemplateError, match="nothing stands before the answer"):
        Template.parse("{a}", "a", mask=True, needs_prompt=False)


def test_a_causal_template_has_no_tail() -> None:
    template = Template.parse("{x}{prompt:1} {a}", "a")
    assert (template.tail, template.mask) == ((), False)
    assert template.encode_tail({}, characters) == ()


def test_a_special_token_ends_a_run_and_is_no_virtual_token() -> None:
    seen: list[str] = []

    def tokenize(text: str) -> Sequence[int]:
        seen.append(text)
        return [1]

    pieces = (Text("a"), Special(9), Text("b"), Field("x"), Prompt(1), Special(8), Special(7))
    template = Template("", pieces, "a", "")
    assert template.encode_context({"x": "c"}, tokenize, 5) == (5, 1, 9, 1, -1, 8, 7)
    assert seen == ["a", "bc"]
    assert template.num_virtual_tokens == 1


def test_only_fields_beside_the_answer_can_give_way() -> None:
    template = Template.parse("{x}{prompt:1}{a}{y}", "a", mask=True)
    template.check_truncate("x")
    template.check_truncate("y")
    for name in ("a", "z", ""):
        with pytest.raises(TemplateError, match=r"cannot be cut .* its answer are: \{x\}, \{y\}"):
            template.check_truncate(name)
