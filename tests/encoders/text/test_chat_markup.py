"""Templates as a user's message: the tokenizer's own chat ids, and nothing in a row is markup."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from encoders.errors import TemplateError
from encoders.text.chat_markup import ChatMarkup
from encoders.text.row_encoder import RowEncoder
from encoders.text.template import Template
from encoders.text.tokenization import TextTokenizer
from tests.encoders.tiny_tokenizers import byt5, byte_bpe, byte_level, chat_bpe, fast

FEW = settings(max_examples=60, deadline=None)
BEFORE = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"

CHAT = TextTokenizer(chat_bpe())
MARKUP = ChatMarkup.render(CHAT)
START, END = 0, 1  # of a ChatML message
HOSTILE = ("<|im_end|>", "<|im_start|>", "<|im_", "end|>", "\n", "assistant", " ", "é", "🙂", "the")

hostile = st.lists(st.sampled_from(HOSTILE), max_size=8).map("".join)


def in_chat(source: str, tokenizer: TextTokenizer = CHAT, **rule: Any) -> RowEncoder:
    template = Template.parse(source, "a", needs_prompt=False)
    return RowEncoder(template, tokenizer, chat=ChatMarkup.render(tokenizer), **rule)


def own_ids(tokenizer: Any, message: str) -> tuple[int, ...]:
    """What the tokenizer makes of a chat with one message."""
    messages = [{"role": "user", "content": message}]
    return tuple(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    )


def word_level(words: list[str], **arguments: Any) -> Any:
    """Words between white space; what it does not know is <unk>."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast(tokenizer, unk_token="<unk>", **arguments)


def test_the_markup_is_what_stands_around_a_message() -> None:
    assert ChatMarkup(BEFORE, AFTER) == MARKUP


@FEW
@given(st.text(alphabet="the capital of Kenyaé🙂\n?<|", max_size=30))
def test_without_virtual_tokens_the_ids_are_the_tokenizers_own_for_the_chat(value: str) -> None:
    ids = in_chat("What is {x}? {a}").encode_context({"x": value})
    assert ids == own_ids(chat_bpe(), f"What is {value}?")


def test_virtual_tokens_stand_inside_the_message() -> None:
    ids = in_chat("{prompt:2}the sea {x}{prompt:1}? {a}").encode_context({"x": "é"})
    before = (START, *CHAT.encode("system\nbe brief"), END, *CHAT.encode("\n"), START)
    after = (END, *CHAT.encode("\n"), START, *CHAT.encode("assistant\n"))
    message = (*CHAT.encode("user\n"), -1, -2, *CHAT.encode("the sea é"), -3, *CHAT.encode("?"))
    assert ids == before + message + after


def test_the_answer_follows_the_markup_directly() -> None:
    encoder = in_chat("{x}{prompt:1}: {a}")
    row = encoder.encode_row({"x": "sea", "a": "Paris"}, ends_answer=True)
    said = (*CHAT.encode("Paris"), END)
    assert row.input_ids == encoder.encode_context({"x": "sea"}) + said
    assert row.labels == (-100,) * (len(row.labels) - len(said)) + said


@FEW
@given(hostile, hostile)
def test_nothing_in_a_row_becomes_markup(value: str, answer: str) -> None:
    encoder = in_chat("say {x}!{prompt:1} {a}")
    ids = encoder.encode_context({"x": value})
    assert [token for token in ids if token in (START, END)] == [START, END, START, END, START]
    told = chat_bpe().decode([token for token in ids if token >= 0], skip_special_tokens=False)
    assert told == f"{BEFORE}say {value}!{AFTER}"
    if answer:
        said = encoder.encode_answer(answer)
        assert not {START, END} & {*said}
        assert CHAT.decode(said) == answer


def test_nor_does_what_the_templates_author_wrote() -> None:
    ids = in_chat("<|im_end|>{x}{prompt:1} {a}").encode_context({"x": ""})
    assert ids.count(END) == 2


@FEW
@given(hostile, st.integers(36, 70))
def test_a_cut_chat_keeps_its_markup(value: str, max_length: int) -> None:
    encoder, plain = in_chat("{x}!{a}", max_length=max_length, truncate="x"), in_chat("{x}!{a}")
    ids = encoder.encode_context({"x": value}, 2)
    assert len(ids) + 2 <= max_length
    cuts = range(len(value) + 1)
    assert any(ids == plain.encode_context({"x": value[:cut]}) for cut in cuts)


def test_the_markup_can_be_kept_and_used_without_the_chat_template() -> None:
    silent = TextTokenizer(chat_bpe().__class__(tokenizer_object=chat_bpe().backend_tokenizer))
    template = Template.parse("{x}{prompt:1}{a}", "a")
    kept = RowEncoder(template, silent, chat=ChatMarkup(MARKUP.before, MARKUP.after))
    row = {"x": "sea <|im_end|>"}
    assert kept.encode_context(row) == in_chat("{x}{prompt:1}{a}").encode_context(row)


def test_a_python_tokenizer_can_chat_too() -> None:
    slow = byt5()
    slow.chat_template = "<extra_id_0>{{ messages[0]['content'] }}</s>"
    tokenizer = TextTokenizer(slow)
    ids = in_chat("{x}{prompt:1}?{a}", tokenizer).encode_context({"x": "a</s> <extra_id_0>"})
    expected = [259, *tokenizer.encode("a</s> <extra_id_0>", literally=True), -1]
    assert list(ids) == [*expected, *tokenizer.encode("?"), 1]


def test_no_opening_token_is_put_before_markup_that_has_its_own() -> None:
    template = "{{ bos_token }}<|u|>{{ messages[0]['content'] }}"
    backend = byte_level(["<s>", "<|u|>"])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = fast(backend, bos_token="<s>", chat_template=template)
    assert TextTokenizer(tokenizer).bos_token_id == 0
    ids = in_chat("{x}{a}", TextTokenizer(tokenizer)).encode_context({"x": "sea"})
    assert ids == own_ids(tokenizer, "sea")
    assert ids.count(0) == 1


def test_white_space_that_a_chat_token_takes_is_taken() -> None:
    """Phi-3's chat tokens take the line break behind them."""
    special = [AddedToken(f"<|{name}|>", rstrip=True, special=True) for name in ("user", "end")]
    template = "{{'<|user|>\n' + messages[0]['content'] + '<|end|>\n'}}assistant"
    tokenizer = fast(byte_level([*special]), chat_template=template)
    ids = in_chat("{x}{a}", TextTokenizer(tokenizer)).encode_context({"x": "the sea"})
    assert ids == own_ids(tokenizer, "the sea")
    assert ids[0] == 0
    assert tokenizer.decode(ids[1:]).startswith("the sea")


def test_a_chat_without_special_tokens_is_one_text() -> None:
    template = "USER: {{ messages[0]['content'] }} ASSISTANT:"
    tokenizer = fast(byte_level([]), chat_template=template)
    encoder = in_chat("{x}{a}", TextTokenizer(tokenizer))
    assert encoder.encode_context({"x": "the sea"}) == own_ids(tokenizer, "the sea")


# Refusals.


def test_a_row_that_cannot_be_read_as_plain_text_is_refused() -> None:
    words = word_level(["<u>", "</u>", "sea", "TheMessageOfTheUser"], eos_token="</u>")
    words.add_special_tokens({"additional_special_tokens": ["<u>"]})
    words.chat_template = "<u> {{ messages[0]['content'] }} </u>"
    encoder = in_chat("{x}{prompt:1}{a}", TextTokenizer(words))
    assert encoder.encode_context({"x": "sea foam"}) == (1, 3, 0, -1, 2)
    with pytest.raises(
        TemplateError, match=r"the row holds </u>, which this tokenizer cannot read"
    ):
        encoder.encode_context({"x": "sea </u> sea"})


def test_added_tokens_of_the_markup_are_refused_in_rows_though_not_special() -> None:
    tokenizer = byte_level([])
    tokenizer.add_tokens([AddedToken("<user>", special=False), AddedToken("<tool>", special=False)])
    chat = fast(tokenizer, chat_template="<user>{{ messages[0]['content'] }}\n")
    encoder = in_chat("{x}{prompt:1}{a}", TextTokenizer(chat))
    assert encoder.encode_context({"x": "<tool>"})[1] == chat.convert_tokens_to_ids("<tool>")
    with pytest.raises(TemplateError, match="the row holds <user>, which"):
        encoder.encode_context({"x": "a <user> b"})


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="no chat template; leave out `chat`, or take a base"):
        ChatMarkup.render(TextTokenizer(byte_bpe()))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("nothing", "writes a message 0 times"),
        ("{{ messages[0]['content'] | upper }}", "writes a message 0 times"),
        ("{{ messages[0]['content'] * 2 }}", "writes a message 2 times"),
        ("{{ raise_exception('no users here') }}", "fails on a single user's message: no users"),
        ("{% if %}", "fails on a single user's message"),
        ("{{ nothing.at.all }}", "fails on a single user's message"),
        ("{{ 'a' + 1 }}", "fails on a single user's message"),
    ],
)
def test_a_chat_template_that_does_not_write_the_message_is_refused(
    template: str, message: str
) -> None:
    tokenizer = fast(byte_level([]), chat_template=template)
    with pytest.raises(TemplateError, match=message):
        ChatMarkup.render(TextTokenizer(tokenizer))


def test_a_tokenizer_that_reads_text_after_a_chat_token_in_its_own_way_is_refused() -> None:
    """SentencePiece with prepend_scheme "first" opens only a whole text with a space."""
    words = ["▁", "<u>", *(chr(i) for i in range(32, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    template = "<u>{{ messages[0]['content'] }}"
    chat = fast(tokenizer, additional_special_tokens=["<u>"], chat_template=template)
    with pytest.raises(TemplateError, match="reads text after its chat tokens differently"):
        ChatMarkup.render(TextTokenizer(chat))


def test_a_masked_answer_is_no_chat() -> None:
    template = Template.parse("{prompt:1}{a}.", "a", mask=True)
    with pytest.raises(TemplateError, match="masked answer cannot be put as a chat message"):
        MARKUP.wrap(template, CHAT)
