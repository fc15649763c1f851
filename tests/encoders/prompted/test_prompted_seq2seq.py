"""Prompts of encoder-decoders: in the encoder, in both, and prefixes of the decoder."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.config import PromptLearningConfig
from encoders.errors import PromptError
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import (
    EXACT,
    KINDS,
    MIXED,
    NAMES,
    SEQ2SEQ,
    TASKS,
    add_mixed,
    difference,
    gradients,
    kind_config,
    largest_difference,
    make_base,
    peft_pair,
    ragged,
    shared_base,
    task_ids_for,
    unchanged,
)

LENGTHS, LABEL_LENGTHS = (4, 9, 2, 7, 5), (3, 5, 6, 1, 4)


def seq2seq_model(architecture: str, num_submodules: int | None) -> PromptedModel:
    model = PromptedModel(shared_base(architecture, "SEQ_2_SEQ_LM"))
    fields = {"task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": num_submodules}
    add_mixed(model, NAMES, **fields)
    return model


def labels() -> Tensor:
    ids, mask = ragged("right", LABEL_LENGTHS, seed=5)
    return ids.masked_fill(mask == 0, -100)


@pytest.mark.parametrize("num_submodules", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_mixed_rows_give_what_each_gives_alone(
    architecture: str, side: str, num_submodules: int
) -> None:
    model = seq2seq_model(architecture, num_submodules)
    ids, mask = ragged(side, LENGTHS)
    call: dict[str, Any] = {"prompts": NAMES, "task_ids": TASKS}
    together = model(input_ids=ids, attention_mask=mask, labels=labels(), **call)
    assert together.logits.shape == (*labels().shape, 97)
    total: Any = 0.0
    for row, length in enumerate(LABEL_LENGTHS):
        text = ids[row][mask[row].bool()][None]
        alone = model(
            input_ids=text,
            labels=labels()[row : row + 1, :length],
            prompts=NAMES[row],
            task_ids=TASKS[row : row + 1],
        )
        assert difference(together.logits[row, :length], alone.logits[0]) < EXACT
        encoded = together.encoder_last_hidden_state[row][mask[row].bool()]
        assert difference(encoded, alone.encoder_last_hidden_state[0]) < EXACT
        total = total + alone.loss * length / sum(LABEL_LENGTHS)
    assert difference(together.loss, total) < EXACT
    assert largest_difference(gradients(model, together.loss), gradients(model, total)) < EXACT


class WordTable(torch.nn.Module):
    """The embeddings of words as a prompt of the encoder."""

    def __init__(self, base: Any, words: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            self.table = torch.nn.Parameter(base.get_input_embeddings()(words)[0])

    def virtual_tokens(self) -> Tensor:
        return self.table


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_a_prompt_of_words_is_those_words(architecture: str) -> None:
    """The plain model is the oracle, in the encoder and, by a table of both, in the decoder."""
    base = shared_base(architecture, "SEQ_2_SEQ_LM")
    model = PromptedModel(base)
    words, start = torch.tensor([[11, 12, 13]]), torch.tensor([[14, 15, 16]])
    model.add_prompt("encoder", WordTable(base, words))
    both = WordTable(base, torch.cat([words, start], 1))
    config = PromptLearningConfig(num_virtual_tokens=3, num_transformer_submodules=2)
    model.add_prompt("both", config, both)
    text, target = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[20, 21]])
    whole = torch.cat([words, text], 1)
    call = {"input_ids": text, "decoder_input_ids": target}
    expected = base(input_ids=whole, decoder_input_ids=target)
    found = model(**call, prompts="encoder")
    assert difference(found.logits, expected.logits) < EXACT
    encoded = expected.encoder_last_hidden_state[:, 3:]
    assert difference(found.encoder_last_hidden_state, encoded) < EXACT
    decoded = torch.cat([start, target], 1)
    expected = base(input_ids=whole, decoder_input_ids=decoded).logits[:, 3:]
    assert difference(model(**call, prompts="both").logits, expected) < EXACT
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    expected = base.generate(whole, decoder_input_ids=decoded, **settings)[:, -5:]
    assert torch.equal(model.generate(**call, prompts="both", **settings)[:, -5:], expected)


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_by_default_both_halves_are_used_and_trained(architecture: str) -> None:
    model = seq2seq_model(architecture, None)
    ids, mask = ragged("left", LENGTHS)
    loss = model(
        input_ids=ids, attention_mask=mask, labels=labels(), prompts=NAMES, task_ids=TASKS
    ).loss
    found = gradients(model, loss)
    for name in ("long", "tasks"):
        table = found[f"{name}.encoder.embedding.weight"]
        assert len(table) == 2 * MIXED[name][1]
        assert table.any(-1).all()
    for name in ("prefix", "wide"):
        prefix = found[f"{name}.encoder.embedding.weight"].view(MIXED[name][1], 4, -1)
        assert prefix.any(-1).all()  # keys and values of both layers


@pytest.mark.parametrize("kind", ["P_TUNING", "PROMPT_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_peft_leaves_half_of_the_table_without_gradient(architecture: str, kind: str) -> None:
    """With its own default of two submodules; and with `peft_layout` we give its results."""
    base = shared_base(architecture, "SEQ_2_SEQ_LM")
    ours, theirs = peft_pair(base, kind, 4, "SEQ_2_SEQ_LM")
    ids, mask = ragged("right", (8, 8, 8))
    call = {"input_ids": ids, "attention_mask": mask, "labels": ids[:, :5].contiguous()}
    expected = theirs(**call)
    table = theirs.prompt_encoder["default"].embedding.weight
    (gradient,) = torch.autograd.grad(expected.loss, table)
    if kind == "PREFIX_TUNING":  # the second layer gets the first one's prefix
        used = gradient.view(4, 2, -1).any(-1).all(0)
        assert used.tolist() == [True, False]
    else:
        assert gradient.any(-1).tolist() == [True] * 4 + [False] * 4
    found = ours(**call)
    assert difference(found.logits, expected.logits) > 1e-3
    as_peft = ours.add_prompt("as peft", *_parts(ours), peft_layout=True)
    found = ours(**call, prompts="as peft")
    assert difference(found.logits, expected.logits) < 1e-6
    assert difference(found.loss, expected.loss) < 1e-6
    (mine,) = torch.autograd.grad(found.loss, as_peft.encoder.embedding.weight)
    assert difference(mine, gradient) < 1e-6


def _parts(model: PromptedModel) -> tuple[Any, Any]:
    return model.prompts["it"].config, model.prompts["it"].encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_unpadded_rows_equal_peft_where_peft_is_right(architecture: str, kind: str) -> None:
    """PEFT uses both halves of a multitask table, and its prefixes need two submodules to run."""
    is_two = kind in ("MULTITASK_PROMPT_TUNING", "PREFIX_TUNING")
    layers = {"num_layers": 1, "num_decoder_layers": 1, "encoder_layers": 1, "decoder_layers": 1}
    base = make_base(architecture, "SEQ_2_SEQ_LM", **(layers if is_two else {}))
    fields = {"num_transformer_submodules": 2 if is_two else 1}
    ours, theirs = peft_pair(base, kind, 4, "SEQ_2_SEQ_LM", **fields)
    ids, mask = ragged("right", (8, 8, 8))
    call = {"input_ids": ids, "attention_mask": mask, "labels": ids[:, :5].contiguous()}
    call |= task_ids_for(kind, 3)
    expected, found = theirs(**call), ours(**call, keep_virtual_positions=True)
    assert difference(found.logits, expected.logits) < 1e-6
    assert difference(found.loss, expected.loss) < 1e-6


def test_encoder_and_decoder_may_embed_by_tables_of_their_own() -> None:
    base = make_base("bart", "SEQ_2_SEQ_LM", tie_word_embeddings=False, decoder_layers=1)
    fields = {"num_layers": 1, "num_transformer_submodules": 2}
    ours, theirs = peft_pair(base, "PREFIX_TUNING", 4, "SEQ_2_SEQ_LM", **fields)
    ids = torch.tensor([[5, 6, 7]])
    call = {"input_ids": ids, "labels": ids}
    assert difference(ours(**call).logits, theirs(**call).logits) < 1e-6
    out = [each.generate(input_ids=ids, max_new_tokens=5) for each in (ours, theirs)]
    assert torch.equal(*out)


def test_decoder_ids_and_mask_may_be_given() -> None:
    model = seq2seq_model("bart", 2)
    ids, mask = ragged("left", LENGTHS)
    decoder_ids, decoder_mask = ragged("left", LABEL_LENGTHS, seed=5)
    call: dict[str, Any] = {"prompts": NAMES, "task_ids": TASKS}
    found = model(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=decoder_ids,
        decoder_attention_mask=decoder_mask,
        **call,
    ).logits
    for row, length in enumerate(LABEL_LENGTHS):
        expected = model(
            input_ids=ids[row][mask[row].bool()][None],
            decoder_input_ids=decoder_ids[row : row + 1, -length:],
            prompts=NAMES[row],
            task_ids=TASKS[row : row + 1],
        ).logits[0]
        assert difference(found[row, -length:], expected) < EXACT


def test_virtual_positions_of_the_decoder_are_kept_on_request() -> None:
    model = seq2seq_model("t5", 2)
    ids, mask = ragged("left", LENGTHS)
    call = {"attention_mask": mask, "labels": labels(), "prompts": NAMES, "task_ids": TASKS}
    kept = model(input_ids=ids, **call, keep_virtual_positions=True)
    stripped = model(input_ids=ids, **call)
    assert torch.equal(kept.logits[:, 5:], stripped.logits)
    encoded = kept.encoder_last_hidden_state
    assert torch.equal(encoded[:, 5:], stripped.encoder_last_hidden_state)
    assert kept.loss == stripped.loss


def test_attentions_are_between_the_inputs_positions() -> None:
    base = make_base("t5", "SEQ_2_SEQ_LM")
    base.set_attn_implementation("eager")
    model = PromptedModel(base)
    add_mixed(model, ("short", "prefix"), task_type="SEQ_2_SEQ_LM")
    ids, mask = ragged("left", (4, 7))
    names = ["short", "prefix"]
    target = labels()[:2]
    together = model(
        input_ids=ids, attention_mask=mask, labels=target, prompts=names, output_attentions=True
    )
    assert together.encoder_attentions[0].shape == (2, 4, 7, 7)
    assert together.decoder_attentions[0].shape == (2, 4, 6, 6)
    alone = model(
        input_ids=ids[:1, 3:],
        labels=target[:1, :3],
        prompts="short",
        output_attentions=True,
    )
    found = together.cross_attentions[1][:1, :, :3]
    assert not found[..., :3].any()
    assert difference(found[..., 3:], alone.cross_attentions[1]) < EXACT


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_a_prefix_has_the_decoders_sizes(architecture: str) -> None:
    """T5's heads need not divide its width, and a decoder may be deeper than its encoder."""
    deep = {"t5": {"d_kv": 5, "num_decoder_layers": 3}, "bart": {"decoder_layers": 3}}
    base = make_base(architecture, "SEQ_2_SEQ_LM", **deep[architecture])
    with unchanged(base):
        model = PromptedModel(base)
        prompt = model.add_prompt("a", kind_config("PREFIX_TUNING", 2, task_type="SEQ_2_SEQ_LM"))
        ids = torch.tensor([[5, 6, 7]])
        loss = model(input_ids=ids, labels=ids).loss
        (gradient,) = torch.autograd.grad(loss, prompt.encoder.embedding.weight)
        assert gradient.view(2, 6, -1).any(-1).all()


def test_a_bare_encoder_decoder_gives_its_features() -> None:
    model = PromptedModel(shared_base("t5", "FEATURE_EXTRACTION"))
    add_mixed(model, ("long", "wide"), task_type="FEATURE_EXTRACTION")
    ids, mask = ragged("left", (3, 5))
    found = model(
        input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :2], prompts=["long", "wide"]
    )
    assert found.last_hidden_state.shape == (2, 2, 32)
    assert found.encoder_last_hidden_state.shape == (2, 5, 32)
    with pytest.raises(PromptError, match="needs decoder_input_ids"):
        model(input_ids=ids, prompts="long")


def test_a_prefix_stands_in_the_decoder_whatever_its_number_of_submodules() -> None:
    """With one, PEFT mixes its cross-attention's states into the past of the self-attention."""
    base = shared_base("bart", "SEQ_2_SEQ_LM")
    one, theirs = peft_pair(base, "PREFIX_TUNING", 4, "SEQ_2_SEQ_LM", num_transformer_submodules=1)
    config = kind_config("PREFIX_TUNING", 4, task_type="SEQ_2_SEQ_LM", num_transformer_submodules=2)
    two = PromptedModel(base)
    two.add_prompt("it", config, one.prompts["it"].encoder)
    ids = torch.tensor([[5, 6, 7]])
    call = {"input_ids": ids, "labels": ids}
    expected = one(**call).logits
    assert difference(two(**call).logits, expected) < EXACT
    assert difference(theirs(**call).logits, expected) > 1e-3
