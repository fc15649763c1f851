"""Padded rows in a plain training loop: the same loss and gradients as the packed engine's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.packed.packing import PackedRow, pack
from encoders.packed.scoring import label_log_probs
from encoders.text.collation import collate, embed_rows
from encoders.text.row_encoder import EncodedRow, RowEncoder
from encoders.text.template import Template
from encoders.text.tokenization import TextTokenizer
from tests.encoders.conftest import WIDTH, make_model, packed
from tests.encoders.tiny_tokenizers import byt5, word_piece

ROWS = [{"x": "the sea", "a": "Nairobi"}, {"x": "a", "a": "b"}, {"x": "", "a": "é?"}]


def virtual_tokens(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(length, WIDTH, generator=generator).requires_grad_()


def test_rows_are_padded_on_the_right_masked_and_unlabelled() -> None:
    rows = [EncodedRow((-1, 5, 6), (-100, -100, 6)), EncodedRow((7,), (7,))]
    batch = collate(rows, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[-1, 5, 6], [7, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 6], [7, -100, -100]]


def test_virtual_tokens_take_their_places_and_the_gradient() -> None:
    table = torch.nn.Embedding(10, WIDTH)
    tokens = virtual_tokens(2)
    embeds = embed_rows(torch.tensor([[-2, 4, -1], [0, 1, 2]]), table, tokens)
    expected = torch.stack([tokens[1], table.weight[4], tokens[0]])
    assert torch.equal(embeds[0], expected)
    assert torch.equal(embeds[1], table.weight[:3])
    embeds.sum().backward()
    assert torch.equal(tokens.grad, torch.ones_like(tokens))  # type: ignore[arg-type]


def test_an_embedding_of_another_dtype_gives_the_dtype() -> None:
    table = torch.nn.Embedding(10, WIDTH, dtype=torch.bfloat16)
    assert embed_rows(torch.tensor([[-1, 1]]), table, virtual_tokens(1)).dtype == torch.bfloat16


def test_a_virtual_token_beyond_the_table_is_an_error() -> None:
    with pytest.raises(IndexError):
        embed_rows(torch.tensor([[-3]]), torch.nn.Embedding(10, WIDTH), virtual_tokens(2))


@pytest.mark.parametrize("source", ["{x}:{prompt:3} {a}", "{prompt:2}{x}{prompt:1}{a}"])
@pytest.mark.parametrize("pad_token_id", [0, 7])
def test_the_padded_loss_and_gradient_are_the_packed_engines(
    source: str, pad_token_id: int
) -> None:
    model = make_model("llama", vocab_size=384)
    encoder = RowEncoder(Template.parse(source, "a"), TextTokenizer(byt5()))
    batch = collate([encoder.encode_row(row) for row in ROWS], pad_token_id)
    plain = virtual_tokens(3)
    embeds = embed_rows(batch["input_ids"], model.get_input_embeddings(), plain)
    loss = model(
        inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]
    ).loss
    loss.backward()

    shared = virtual_tokens(3)
    rows = [
        PackedRow("p", encoder.encode_context(row), (encoder.encode_answer(row["a"]),))
        for row in ROWS
    ]
    whole = pack(rows, {"p": 3})
    other = -label_log_probs(packed(model).logits(whole, {"p": shared}), whole).mean()
    other.backward()
    assert torch.allclose(loss, other, atol=1e-5)
    assert torch.allclose(plain.grad, shared.grad, atol=1e-5)  # type: ignore[arg-type]


def test_a_masked_model_learns_from_its_masks_alone() -> None:
    """The paper's form for BERT: the loss is that of the masks, and all virtual tokens learn."""
    from transformers import BertConfig, BertForMaskedLM

    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(BertConfig(vocab_size=140, hidden_size=WIDTH, **shape)).eval()
    template = Template.parse("{prompt:3}{x}{prompt:3}{a}{prompt:3}.", "a", mask=True)
    encoder = RowEncoder(template, TextTokenizer(word_piece()))
    batch = collate([encoder.encode_row(row) for row in ROWS], pad_token_id=0)
    tokens = virtual_tokens(9)
    embeds = embed_rows(batch["input_ids"], model.get_input_embeddings(), tokens)
    found = model(
        inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]
    )
    at_masks = batch["input_ids"] == word_piece().mask_token_id
    assert at_masks.sum(1).tolist() == [len(encoder.encode_answer(row["a"])) for row in ROWS]
    said = torch.tensor([token for row in ROWS for token in encoder.encode_answer(row["a"])])
    assert torch.allclose(found.loss, F.cross_entropy(found.logits[at_masks], said))
    found.loss.backward()
    assert (tokens.grad.abs().sum(1) > 0).all()  # type: ignore[union-attr]
