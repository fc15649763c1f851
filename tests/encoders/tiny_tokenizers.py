"""Small tokenizers of the families that matter, made on the spot: nothing is read or fetched."""

from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

SENTENCES = (
    "the capital of France is Paris and the capital of Kenya is Nairobi",
    "the river of the country flows to the sea, the sea is deep",
    "what is the name of the capital? the answer is a city",
    "pack my box with five dozen liquor jugs!",
    "the quick brown fox jumps over it.",
)

#: ChatML, as SmolLM2 and Qwen write it, with a system message of its own.
CHATML = (
    "{{ '<|im_start|>system\nbe brief<|im_end|>\n' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def fast(tokenizer: Tokenizer, **arguments: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **arguments)


def byte_level(special: list[str | AddedToken]) -> Tokenizer:
    """Merges over bytes, trained on the sentences; `special` are the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


def byt5() -> Any:
    """Bytes, in Python: no merges, and it does not tell where its tokens stand."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@cache
def byte_bpe() -> Any:
    """GPT-2's kind: merges over bytes, a character may take several tokens."""
    return fast(byte_level(["<|end|>"]), eos_token="<|end|>")


@cache
def chat_bpe() -> Any:
    """SmolLM2's kind: the same, with ChatML."""
    special: list[str | AddedToken] = ["<|im_start|>", "<|im_end|>"]
    return fast(byte_level(special), eos_token="<|im_end|>", chat_template=CHATML)


@cache
def roberta_bpe() -> Any:
    """RoBERTa's kind: merges over bytes, <s> and </s> around, a mask that takes a space."""
    mask = AddedToken("<mask>", lstrip=True, special=True)
    tokenizer = byte_level(["<s>", "</s>", mask])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", mask_token=mask)


@cache
def word_piece() -> Any:
    """BERT's kind: lower case, words and ##pieces, [CLS] and [SEP] around."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return fast(tokenizer, **dict(zip(roles, special, strict=True)))
