import socket
from pathlib import Path
from typing import Any

import pytest

from encoders.tokenization import TextTokenizer


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
