"""Generation of mixed batches against each row alone, against the base's own, and real PEFT."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from encoders.errors import PromptError
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import (
    CAUSAL,
    KINDS,
    LENGTHS,
    NAMES,
    SEQ2SEQ,
    TASKS,
    add_mixed,
    difference,
    kind_config,
    make_base,
    peft_pair,
    ragged,
    shared_base,
    task_ids_for,
    unchanged,
)

NEW = 6
#: No early end, so that every row has NEW new tokens.
ENDLESS: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
GREEDY = {**ENDLESS, "do_sample": False}
MODES: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "greedy without cache": {**GREEDY, "use_cache": False},
    "beams": {**GREEDY, "num_beams": 3},
    "beams without cache": {**GREEDY, "num_beams": 3, "use_cache": False},
    "several beams": {**GREEDY, "num_beams": 4, "num_return_sequences": 2},
    "penalised": {**GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


def mixed_model(architecture: str) -> PromptedModel:
    task = "SEQ_2_SEQ_LM" if architecture in SEQ2SEQ else "CAUSAL_LM"
    untied = {"tie_word_embeddings": False} if architecture == "bart" else {}
    model = PromptedModel(shared_base(architecture, task, **untied))
    add_mixed(model, NAMES, task_type=task)
    return model


def alone(model: PromptedModel, row: int, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
    text = ids[row][mask[row].bool()][None]
    found: Tensor = model.generate(
        input_ids=text,
        attention_mask=torch.ones_like(text),
        prompts=NAMES[row],
        task_ids=TASKS[row : row + 1],
        **more,
    )
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", [*CAUSAL, *SEQ2SEQ])
def test_mixed_rows_generate_what_each_generates_alone(
    architecture: str, mode: str, side: str
) -> None:
    model = mixed_model(architecture)
    ids, mask = ragged(side, LENGTHS)
    call = {"input_ids": ids, "attention_mask": mask, "prompts": NAMES, "task_ids": TASKS}
    together = model.generate(**call, **MODES[mode])
    num_each = MODES[mode].get("num_return_sequences", 1)
    assert len(together) == 5 * num_each
    for row in range(len(LENGTHS)):
        expected = alone(model, row, ids, mask, **MODES[mode])
        found = together[row * num_each : (row + 1) * num_each]
        assert torch.equal(found[:, -NEW:], expected[:, -NEW:])
        if architecture in CAUSAL:
            assert torch.equal(found[:, :-NEW], ids[row].expand(num_each, -1))


@pytest.mark.parametrize("architecture", [*CAUSAL, *SEQ2SEQ])
def test_prompts_and_texts_make_what_is_generated_differ(architecture: str) -> None:
    """Otherwise the tests above would say nothing."""
    model = mixed_model(architecture)
    one, other = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 6, 7]])
    call = {"prompts": NAMES, "task_ids": TASKS, **GREEDY}
    sequences = {
        tuple(row[-NEW:].tolist())
        for text in (one, other)
        for row in model.generate(input_ids=text.expand(5, -1), **call)
    }
    assert len(sequences) >= 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", CAUSAL)
def test_one_prompt_generates_what_peft_generates(architecture: str, kind: str) -> None:
    ours, theirs = peft_pair(shared_base(architecture), kind, 5, "CAUSAL_LM")
    ids, mask = ragged("right", (8, 8, 8))
    call = {"input_ids": ids, "attention_mask": mask, **task_ids_for(kind, 3)}
    for mode in ("greedy", "beams"):
        expected = theirs.generate(**call, **MODES[mode])
        assert torch.equal(ours.generate(**call, **MODES[mode]), expected)


@pytest.mark.parametrize("kind", ["P_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5", "bart"])
def test_sampling_with_one_seed_draws_what_peft_draws(architecture: str, kind: str) -> None:
    is_seq2seq = architecture in SEQ2SEQ
    task = "SEQ_2_SEQ_LM" if is_seq2seq else "CAUSAL_LM"
    shallow = {"t5": {"num_layers": 1}, "bart": {"encoder_layers": 1, "decoder_layers": 1}}
    base = make_base(architecture, task, **shallow.get(architecture, {}))
    num_submodules = 2 if is_seq2seq and kind == "PREFIX_TUNING" else 1
    ours, theirs = peft_pair(base, kind, 5, task, num_transformer_submodules=num_submodules)
    ids, mask = ragged("right", (8, 8, 8))
    call = {"input_ids": ids, "attention_mask": mask, **ENDLESS}
    call |= {"do_sample": True, "top_k": 20, "temperature": 1.5, "num_return_sequences": 2}
    torch.manual_seed(1)
    expected = theirs.generate(**call)
    torch.manual_seed(1)
    assert torch.equal(ours.generate(**call), expected)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "t5", "bart"])
def test_a_mixed_batch_samples_from_what_each_row_would_alone(
    architecture: str, use_cache: bool
) -> None:
    model = mixed_model(architecture)
    ids, mask = ragged("left", LENGTHS)
    torch.manual_seed(1)
    call = {"input_ids": ids, "attention_mask": mask, "prompts": NAMES, "task_ids": TASKS}
    call |= {**ENDLESS, "do_sample": True, "use_cache": use_cache}
    out = model.generate(**call, output_logits=True, return_dict_in_generate=True)
    logits = torch.stack(out.logits, 1)  # [5, NEW, vocabulary]
    for row in range(len(LENGTHS)):
        text, sampled = ids[row][mask[row].bool()][None], out.sequences[row : row + 1]
        rows = {"prompts": NAMES[row], "task_ids": TASKS[row : row + 1]}
        if architecture in SEQ2SEQ:
            expected = model(input_ids=text, decoder_input_ids=sampled[:, :-1], **rows)
        else:
            text = torch.cat([text, sampled[:, -NEW:-1]], 1)
            expected = model(input_ids=text, **rows)
        assert difference(logits[row], expected.logits[0, -NEW:]) < 1e-5


def test_a_decoder_that_counts_slots_needs_decoder_prompts_of_one_length() -> None:
    model = PromptedModel(shared_base("m2m100", "SEQ_2_SEQ_LM"))
    add_mixed(model, ("short", "long"), task_type="SEQ_2_SEQ_LM")
    call = {"input_ids": torch.tensor([[5, 6, 7], [5, 8, 9]]), **GREEDY}
    with pytest.raises(PromptError, match="M2M100.* generate for each length by itself"):
        model.generate(**call, prompts=["short", "long"])
    together = model.generate(**call, prompts="long")
    call["input_ids"] = call["input_ids"][1:]
    assert torch.equal(model.generate(**call, prompts="long"), together[1:])


def test_rows_may_end_early() -> None:
    model = mixed_model("llama")
    ids, mask = ragged("left", LENGTHS)
    free = model.generate(
        input_ids=ids, attention_mask=mask, prompts=NAMES, task_ids=TASKS, **GREEDY
    )
    end = int(free[1, -NEW + 1])
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": end}
    together = model.generate(
        input_ids=ids, attention_mask=mask, prompts=NAMES, task_ids=TASKS, **settings
    )
    for row in range(len(LENGTHS)):
        new = alone(model, row, ids, mask, **settings)[0, LENGTHS[row] :]
        assert torch.equal(together[row, ids.shape[1] :][: len(new)], new)


def test_lengths_count_the_text_alone() -> None:
    model = mixed_model("llama")
    ids = torch.tensor([[5, 6, 7]])
    assert model.generate(input_ids=ids, prompts="long", max_length=7).shape == (1, 7)


def test_a_mask_is_implied_by_the_padding_as_transformers_implies_it() -> None:
    model = mixed_model("llama")
    ids, mask = ragged("left", LENGTHS)
    call = {"input_ids": ids, "prompts": NAMES, "task_ids": TASKS}
    expected = model.generate(**call, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(**call, **GREEDY), expected)
    without = {**GREEDY, "eos_token_id": 0}  # padding that may end a text is text
    assert not torch.equal(model.generate(**call, **without), expected)


@pytest.mark.parametrize("architecture", ["mistral", "t5"])
def test_generating_leaves_the_base_as_it_was(architecture: str) -> None:
    task = "SEQ_2_SEQ_LM" if architecture in SEQ2SEQ else "CAUSAL_LM"
    base = make_base(architecture, task)
    ids, mask = ragged("left", LENGTHS)
    before = base.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    model = PromptedModel(base)
    add_mixed(model, NAMES, task_type=task)
    call = {"input_ids": ids, "attention_mask": mask, "prompts": NAMES, "task_ids": TASKS}
    with unchanged(base):
        model.generate(**call, **MODES["several beams"])
        with pytest.raises(ValueError, match="Boom"):
            model.generate(**call, **GREEDY, logits_processor=[_Boom()])
    assert torch.equal(base.generate(input_ids=ids, attention_mask=mask, **GREEDY), before)


class _Boom:
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        raise ValueError("Boom")


def test_hidden_states_and_attentions_of_the_encoder_are_given() -> None:
    model = mixed_model("bart")
    out = model.generate(
        input_ids=torch.tensor([[5, 6, 7]]),
        prompts="short",
        output_hidden_states=True,
        return_dict_in_generate=True,
        **GREEDY,
    )
    assert len(out.encoder_hidden_states) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"inputs_embeds": torch.zeros(1, 3, 32)},
        {"token_type_ids": torch.zeros(1, 3)},
        {"prompt_lookup_num_tokens": 2},
        {"prefill_chunk_size": 2},
    ],
)
def test_what_composed_rows_cannot_honour_is_refused(arguments: dict[str, Any]) -> None:
    model = mixed_model("llama")
    with pytest.raises(PromptError, match=f"does not take '{next(iter(arguments))}'"):
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), prompts="short", **arguments)


def test_a_static_cache_gives_way_where_only_the_bases_settings_ask_for_it() -> None:
    """As the files of Gemma 2 do."""
    base = make_base("gemma2")
    model = PromptedModel(base)
    add_mixed(model, NAMES)
    ids, mask = ragged("left", LENGTHS)
    call = {"input_ids": ids, "attention_mask": mask, "prompts": NAMES, "task_ids": TASKS}
    expected = model.generate(**call, **GREEDY)
    base.generation_config.cache_implementation = "static"
    assert torch.equal(model.generate(**call, **GREEDY), expected)
    config = GenerationConfig(cache_implementation="static")
    for asked in ({"cache_implementation": "static"}, {"generation_config": config}):
        with pytest.raises(PromptError, match="'static'; with prompts it must be 'dynamic'"):
            model.generate(**call, **asked)
    base.generation_config = GenerationConfig(prompt_lookup_num_tokens=2)
    with pytest.raises(PromptError, match="does not take 'prompt_lookup_num_tokens'"):
        model.generate(**call)


def test_a_base_without_a_language_model_head_does_not_generate() -> None:
    model = PromptedModel(shared_base("bert", "SEQ_CLS"))
    model.add_prompt("a", kind_config("P_TUNING", 2))
    with pytest.raises(PromptError, match="no language model head"):
        model.generate(input_ids=torch.tensor([[5, 6, 7]]))
