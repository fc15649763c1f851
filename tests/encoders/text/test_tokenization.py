import socket
from pathlib import Path
from typing import Any

import pytest

from encoders.text.tokenization import MAX_CACHED_CHARS, TextTokenizer
from tests.encoders.tiny_tokenizers import byte_bpe, chat_bpe, roberta_bpe, word_piece


@pytest.fixture(scope="module")
def byt5() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def word_tokenizer(**special: str) -> Any:
    """A small fast tokenizer; with a bos token, it opens every text with it, as Llama's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special.get("bos_token"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def test_byt5_opens_with_nothing_and_ends_with_its_end_token(byt5: Any) -> None:
    tokenizer = TextTokenizer(byt5)
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token_id == 1


@pytest.mark.parametrize("text", ["hello", " leading and trailing ", "é ü 漢字 🙂", "a\nb", ""])
def test_byt5_ids_are_bytes_and_come_back(byt5: Any, text: str) -> None:
    tokenizer = TextTokenizer(byt5)
    ids = tokenizer.encode(text)
    assert ids == tuple(byte + 3 for byte in text.encode())
    assert tokenizer.decode(ids) == text


def test_parts_of_a_text_encode_to_parts_of_its_ids(byt5: Any) -> None:
    tokenizer = TextTokenizer(byt5)
    assert tokenizer.encode("ab") + tokenizer.encode(" c") == tokenizer.encode("ab c")


def test_an_opening_token_is_found_but_not_put_into_texts() -> None:
    tokenizer = TextTokenizer(word_tokenizer(bos_token="<s>", eos_token="</s>"))
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2
    assert tokenizer.encode("a b") == (3, 4)
    assert tokenizer.decode((1, 3, 4, 2)) == "a b"


def test_a_tokenizer_without_special_tokens_has_neither() -> None:
    tokenizer = TextTokenizer(word_tokenizer())
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token_id is None


def test_a_bos_token_that_does_not_open_texts_is_not_used() -> None:
    fast = word_tokenizer(eos_token="</s>")
    fast.bos_token = "</s>"
    assert TextTokenizer(fast).bos_token_id is None


def test_load_reads_a_folder(tiny_base: Path) -> None:
    tokenizer = TextTokenizer.load(tiny_base)
    assert tokenizer.encode("a") == (100,)
    assert tokenizer.eos_token_id == 1


def test_load_never_reaches_for_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: called.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: called.append(args))
    with pytest.raises((OSError, ValueError)):
        TextTokenizer.load(tmp_path)
    assert not called


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_long_texts_are_tokenized_like_short_ones(byt5: Any, extra: int) -> None:
    text = "é" * ((MAX_CACHED_CHARS + extra) // 2) + "a"
    for _ in range(2):
        assert TextTokenizer(byt5).encode(text) == tuple(byte + 3 for byte in text.encode())


@pytest.mark.parametrize(
    ("make", "expected"),
    [(byte_bpe, ((), ())), (roberta_bpe, ((0,), (1,))), (word_piece, ((2,), (3,)))],
)
def test_surroundings_are_what_the_tokenizer_puts_around_a_text(
    make: Any, expected: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    assert TextTokenizer(make()).surroundings == expected
    opening, closing = expected
    whole = make()("the sea")["input_ids"]
    assert (*opening, *TextTokenizer(make()).encode("the sea"), *closing) == tuple(whole)


def test_byt5_puts_its_end_token_behind_a_text(byt5: Any) -> None:
    assert TextTokenizer(byt5).surroundings == ((), (1,))


def test_a_text_can_be_cut_where_a_token_ends_but_not_in_a_character() -> None:
    tokenizer = TextTokenizer(byte_bpe())
    assert len(tokenizer.encode("🙂")) > 1
    assert tokenizer.token_ends("the sea 🙂!") == (3, 7, 8, 9, 10)
    assert tokenizer.token_ends("") == ()


def test_a_python_tokenizer_may_be_cut_after_any_character(byt5: Any) -> None:
    assert TextTokenizer(byt5).token_ends("a🙂b") == (1, 2, 3)


@pytest.mark.parametrize("make", [byte_bpe, chat_bpe, roberta_bpe, word_piece])
def test_literally_no_text_is_a_special_token(make: Any) -> None:
    tokenizer = TextTokenizer(make())
    controls = tokenizer.control_tokens("")
    assert controls
    for text, token_id in controls.items():
        assert tokenizer.encode(text) == (token_id,)
        assert not set(controls.values()) - {tokenizer.unk_token_id} & {
            *tokenizer.encode(f"the {text} sea", literally=True)
        }
        assert tokenizer.encode(text) == (token_id,)


def test_control_tokens_are_the_special_ones_and_those_of_the_markup() -> None:
    fast = word_tokenizer(bos_token="<s>", eos_token="</s>")
    fast.add_tokens(["<user>", "<tool>", "\n"])
    tokenizer = TextTokenizer(fast)
    assert set(tokenizer.control_tokens("")) == {"<unk>", "<s>", "</s>"}
    assert set(tokenizer.control_tokens("<user>\n")) == {"<unk>", "<s>", "</s>", "<user>"}


def test_markup_is_split_into_text_and_control_tokens() -> None:
    tokenizer = TextTokenizer(chat_bpe())
    assert tokenizer.split_controls("a<|im_start|><|im_end|>\n<|im_") == ("a", 0, 1, "\n<|im_")
    assert tokenizer.split_controls("") == ()
    assert TextTokenizer(roberta_bpe()).split_controls("a <mask> b") == ("a", 2, " b")


def test_a_longer_control_token_goes_before_one_it_opens_with() -> None:
    fast = word_tokenizer(eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": ["<u", "<u>"]})
    short, long = fast.convert_tokens_to_ids(["<u", "<u>"])
    assert TextTokenizer(fast).split_controls("<u><u") == (long, short)


def test_a_chat_is_rendered_up_to_the_answer() -> None:
    text = TextTokenizer(chat_bpe()).render_chat("hello")
    assert text.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("make", [byte_bpe, chat_bpe, roberta_bpe, word_piece])
def test_text_ids_are_the_tokens_that_are_not_special(make: Any) -> None:
    tokenizer = make()
    special = set(tokenizer.all_special_ids)
    expected = set(range(len(tokenizer))) - special - set(tokenizer.added_tokens_decoder)
    assert special
    assert TextTokenizer(tokenizer).text_ids == tuple(sorted(expected))


def test_text_ids_of_bytes_are_the_bytes(byt5: Any) -> None:
    assert TextTokenizer(byt5).text_ids == tuple(range(3, 259))


def test_tokens_kept_unused_are_no_text() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["a", "[unused1]", "<unused2>", "<|reserved_special_token_3|>", "unused", "<b>", "[c"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    assert TextTokenizer(tokenizer).text_ids == (0, 4, 5, 6)
