"""Real PEFT is the other side of every round trip; equal means to the last bit."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoders.config import (
    CONFIG_CLASSES,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
)
from encoders.errors import ConfigError, WeightsError
from encoders.formats.peft_format import (
    WEIGHTS_NAME,
    Adapter,
    load_adapter,
    save_adapter,
    write_adapter,
)
from encoders.modules.prompt_factory import get_prompt_encoder

peft = pytest.importorskip("peft")

WIDTH = 16
VIRTUAL = 3
_SHAPE = {"vocab_size": 50, "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 24}
_HEADS = {"num_attention_heads": 4, "pad_token_id": 0}
_BERT = {**_SHAPE, **_HEADS}
_T5 = {"vocab_size": 50, "d_model": WIDTH, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
#: transformers' config class, its arguments and the model class, by task.
BASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "CAUSAL_LM": ("LlamaConfig", {**_BERT, "num_key_value_heads": 2}, "LlamaForCausalLM"),
    "SEQ_2_SEQ_LM": (
        "T5Config",
        {**_T5, "decoder_start_token_id": 0, "dropout_rate": 0.0},
        "T5ForConditionalGeneration",
    ),
    "SEQ_CLS": ("BertConfig", {**_BERT, "num_labels": 3}, "BertForSequenceClassification"),
    "TOKEN_CLS": ("BertConfig", {**_BERT, "num_labels": 3}, "BertForTokenClassification"),
    "QUESTION_ANS": ("BertConfig", _BERT, "BertForQuestionAnswering"),
    "FEATURE_EXTRACTION": ("BertConfig", _BERT, "BertModel"),
}
#: Names of the heads' modules that PEFT trains, by task.
TRAINED = {"SEQ_CLS": "classifier", "TOKEN_CLS": "classifier", "QUESTION_ANS": "qa_outputs"}
SAVED = {"classifier": {"classifier", "score"}, "qa_outputs": {"qa_outputs"}}
METHODS: dict[str, dict[str, Any]] = {
    "P_TUNING": {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 8},
    "PREFIX_TUNING": {"prefix_projection": True, "encoder_hidden_size": 8},
    "PROMPT_TUNING": {},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 3, "num_ranks": 2},
}
CASES = [(task, method) for task in BASES for method in METHODS]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        yield


def make_base(task: str, seed: int = 0) -> Any:
    config_name, arguments, model_name = BASES[task]
    config = getattr(transformers, config_name)(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, model_name)(config).eval()


def make_config(task: str, method: str, **fields: Any) -> PromptLearningConfig:
    kind = CONFIG_CLASSES[method]  # type: ignore[index]
    fields = {"task_type": task, "num_virtual_tokens": VIRTUAL, **METHODS[method], **fields}
    return kind(**fields).completed(make_base(task).config)


def peft_model(task: str, method: str, seed: int = 1) -> Any:
    """A PEFT model whose prompt and heads are random."""
    config = make_config(task, method).to_dict()
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[config.pop("peft_type")]
    model = peft.get_peft_model(make_base(task), kind(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def peft_loads(folder: Path, task: str) -> Any:
    return peft.PeftModel.from_pretrained(make_base(task), folder).eval()


def outputs_of(model: Any, task: str, method: str) -> list[Tensor]:
    """What a PEFT model says of two rows: its logits (or hidden states)."""
    inputs: dict[str, Tensor] = {
        "input_ids": torch.arange(1, 11).view(2, 5),
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
    }
    if task == "SEQ_2_SEQ_LM":
        inputs["labels"] = torch.arange(4).view(2, 2)
    if method == "MULTITASK_PROMPT_TUNING":
        inputs["task_ids"] = torch.tensor([2, 0])
    with torch.no_grad():
        return [value for value in model(**inputs).values() if isinstance(value, Tensor)]


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def heads_of(model: Any, task: str) -> dict[str, Tensor]:
    return {
        name: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        for name, tensor in model.state_dict().items()
        if name.startswith(TRAINED.get(task, "-"))
    }


def our_prompt(task: str, method: str) -> tuple[PromptLearningConfig, nn.Module]:
    config = make_config(task, method)
    torch.manual_seed(3)
    return config, get_prompt_encoder(config)


@pytest.mark.parametrize(("task", "method"), CASES)
def test_an_adapter_of_peft_comes_back_to_peft_unchanged(
    tmp_path: Path, task: str, method: str
) -> None:
    model = peft_model(task, method)
    model.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    write_adapter(tmp_path / "ours", adapter)

    theirs, ours = (load_file(tmp_path / side / WEIGHTS_NAME) for side in ("theirs", "ours"))
    assert_same(ours, theirs)
    configs = [(tmp_path / side / "adapter_config.json").read_text() for side in ("theirs", "ours")]
    assert json.loads(configs[0]) == json.loads(configs[1])
    if method == "MULTITASK_PROMPT_TUNING" and task in ("QUESTION_ANS", "FEATURE_EXTRACTION"):
        return  # PEFT passes no task_ids there
    expected = outputs_of(peft_loads(tmp_path / "theirs", task), task, method)
    found = outputs_of(peft_loads(tmp_path / "ours", task), task, method)
    assert expected
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("task", "method"), CASES)
def test_our_adapter_comes_back_from_peft_unchanged(tmp_path: Path, task: str, method: str) -> None:
    config, module = our_prompt(task, method)
    heads = heads_of(make_base(task), task)
    save_adapter(tmp_path / "ours", config, module, heads)
    peft_loads(tmp_path / "ours", task).save_pretrained(tmp_path / "theirs")
    ours, theirs = load_adapter(tmp_path / "ours"), load_adapter(tmp_path / "theirs")
    assert_same(theirs.tensors, ours.tensors)
    assert_same(theirs.heads, heads)
    assert_same(ours.heads, heads)
    assert replace(theirs.config, modules_to_save=None) == replace(config, inference_mode=True)
    assert set(theirs.config.modules_to_save or ()) == SAVED.get(TRAINED.get(task, ""), set())


@pytest.mark.parametrize(("task", "method"), CASES)
def test_the_module_of_an_adapter_is_the_table_that_peft_uses(
    tmp_path: Path, task: str, method: str
) -> None:
    model = peft_model(task, method)
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    module = load_adapter(tmp_path).module()
    assert torch.equal(torch.get_rng_state(), before)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    indices = torch.arange(module.embedding.num_embeddings)[None]  # type: ignore[union-attr]
    if method == "MULTITASK_PROMPT_TUNING":
        expected = model.get_prompt(1, torch.tensor([2]))
        assert torch.equal(module(indices, torch.tensor([2])), expected)
    else:
        assert torch.equal(module(indices)[0], model.get_prompt_embedding_to_save("default"))


def test_an_adapter_says_whether_peft_wrote_it_even_after_we_copied_it(tmp_path: Path) -> None:
    peft_model("CAUSAL_LM", "P_TUNING").save_pretrained(tmp_path / "theirs")
    write_adapter(tmp_path / "copy", load_adapter(tmp_path / "theirs"))
    save_adapter(tmp_path / "ours", *our_prompt("CAUSAL_LM", "P_TUNING"))
    write_adapter(tmp_path / "again", load_adapter(tmp_path / "ours"))
    peft_loads(tmp_path / "ours", "CAUSAL_LM").save_pretrained(tmp_path / "trained on")
    names = ("theirs", "copy", "ours", "again", "trained on")
    found = [load_adapter(tmp_path / name).is_pefts for name in names]
    assert found == [True, True, False, False, True]


def test_a_prompt_is_saved_without_dropout_and_its_modes_stay(tmp_path: Path) -> None:
    config = make_config("CAUSAL_LM", "P_TUNING", encoder_dropout=0.5)
    module = get_prompt_encoder(config).train()
    module.mlp_head.eval()  # type: ignore[operator,union-attr]
    save_adapter(tmp_path / "a", config, module)
    save_adapter(tmp_path / "b", config, module)
    first, second = (load_adapter(tmp_path / name).tensors for name in "ab")
    assert_same(first, second)
    assert module.training
    assert not module.mlp_head.training  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adapters_keep_their_values_and_dtype(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    config = make_config("CAUSAL_LM", "PROMPT_TUNING")
    table = torch.randn(VIRTUAL, WIDTH).to(dtype)
    write_adapter(tmp_path, Adapter(config, {"prompt_embeddings": table}, {}))
    assert_same(load_adapter(tmp_path).tensors, {"prompt_embeddings": table})
    assert_same(load_file(tmp_path / WEIGHTS_NAME), {"prompt_embeddings": table})
    weight = load_adapter(tmp_path).module().embedding.weight  # type: ignore[union-attr]
    assert_same({"w": weight}, {"w": table.float()})
    theirs = peft_loads(tmp_path, "CAUSAL_LM").prompt_encoder["default"].embedding.weight
    assert torch.equal(theirs, table.float())


@given(
    st.sampled_from([*METHODS]),
    st.integers(1, 5),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_size_of_any_method_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    method: str,
    num_tokens: int,
    submodules: int,
    layers: int,
    seed: int,
) -> None:
    fields = METHODS[method] | {"num_virtual_tokens": num_tokens, "token_dim": 4}
    sizes = {"num_transformer_submodules": submodules, "num_layers": layers}
    config = CONFIG_CLASSES[method](**fields, **sizes)  # type: ignore[index]
    torch.manual_seed(seed)
    module = get_prompt_encoder(config)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(folder, config, module)
    adapter = load_adapter(folder)
    assert adapter.config == replace(config, inference_mode=True)
    write_adapter(folder / "again", adapter)
    for name in (WEIGHTS_NAME, "adapter_config.json"):
        assert (folder / name).read_bytes() == (folder / "again" / name).read_bytes()


def test_the_module_of_an_adapter_never_shares_its_tensors(tmp_path: Path) -> None:
    config = make_config("CAUSAL_LM", "PROMPT_TUNING")
    adapter = Adapter(config, {"prompt_embeddings": torch.zeros(VIRTUAL, WIDTH)}, {})
    with torch.no_grad():
        adapter.module().embedding.weight.add_(1)  # type: ignore[union-attr,operator]
    assert not adapter.tensors["prompt_embeddings"].any()


@pytest.mark.parametrize("task", TRAINED)
def test_a_classifying_task_is_not_saved_without_its_head(tmp_path: Path, task: str) -> None:
    config, module = our_prompt(task, "P_TUNING")
    with pytest.raises(WeightsError, match=f"{task} trains a head"):
        save_adapter(tmp_path, config, module)
    assert not any(tmp_path.iterdir())
    save_adapter(tmp_path, config, module, {})
    with pytest.raises(KeyError):  # PEFT, without a word
        peft_loads(tmp_path, task)


def test_only_heads_that_peft_would_look_for_are_saved(tmp_path: Path) -> None:
    config, module = our_prompt("SEQ_CLS", "PROMPT_TUNING")
    pooler = {"bert.pooler.dense.weight": torch.ones(2)}
    with pytest.raises(WeightsError, match="pooler.*task_type name classifier, score"):
        save_adapter(tmp_path, config, module, pooler)
    save_adapter(tmp_path, replace(config, modules_to_save=["pooler"]), module, pooler)
    assert_same(load_adapter(tmp_path).heads, pooler)
    with pytest.raises(WeightsError, match="'base_model.classifier' is in no module"):
        save_adapter(tmp_path, config, module, {"classifier": torch.ones(2)})


def test_a_head_that_peft_forgets_is_loaded_once_the_config_names_it(tmp_path: Path) -> None:
    """PEFT looks for `classifier` and `score`; BART's is a `classification_head`."""
    shape = {"vocab_size": 50, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_labels": 3}
    bart = transformers.BartConfig(**shape, **heads, encoder_ffn_dim=8, decoder_ffn_dim=8)
    config = PromptTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL, modules_to_save=["classification_head"]
    ).completed(bart)
    trained = {
        name: torch.randn(tensor.shape)
        for name, tensor in transformers.BartForSequenceClassification(bart).state_dict().items()
        if name.startswith("classification_head")
    }
    assert len(trained) == 4
    save_adapter(tmp_path, config, get_prompt_encoder(config), trained)
    base = transformers.BartForSequenceClassification(bart)
    found = peft.PeftModel.from_pretrained(base, tmp_path).state_dict()
    for name, tensor in trained.items():
        module, _, rest = name.partition(".")
        assert torch.equal(found[f"base_model.{module}.modules_to_save.default.{rest}"], tensor)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_embeddings": torch.ones(VIRTUAL, WIDTH + 1)}, r"\(3, 17\), expected .*\(3, 16\)"),
        ({"prompt_embeddings": torch.ones(WIDTH, VIRTUAL)}, r"\(16, 3\), expected"),
        ({"prompt_embeddings": torch.ones(VIRTUAL * WIDTH)}, r"\(48,\), expected"),
        ({"prompt_embeddings": torch.ones(VIRTUAL, WIDTH).double()}, "is float64"),
        ({"prompt_embeddings": torch.ones(VIRTUAL, WIDTH).long()}, "is int64"),
        ({"prompt_embeddings": torch.ones(VIRTUAL, WIDTH) / 0}, "holds NaN or infinity"),
        ({"prompt_embeddings": torch.full((VIRTUAL, WIDTH), torch.nan)}, "holds NaN or infinity"),
        ({"more": torch.ones(1)}, "it holds 'more'; expected is nothing but 'prompt_embeddings'"),
        ({"base_model.lm_head.weight": torch.ones(1)}, "lm_head.weight' is in no module"),
        ({"embedding.weight": torch.ones(VIRTUAL, WIDTH)}, "it holds 'embedding.weight'"),
        ({"prompt_embeddings": None}, "it lacks 'prompt_embeddings'; it holds no tensor"),
    ],
)
def test_tensors_that_the_config_does_not_imply_are_refused(
    tmp_path: Path, change: dict[str, Tensor | None], reason: str
) -> None:
    config = make_config("CAUSAL_LM", "PROMPT_TUNING")
    config.save_pretrained(tmp_path)
    tensors = {"prompt_embeddings": torch.ones(VIRTUAL, WIDTH)} | change
    save_file({n: t for n, t in tensors.items() if t is not None}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(WeightsError, match=reason):
        load_adapter(tmp_path)


def test_a_multitask_adapter_needs_its_factors(tmp_path: Path) -> None:
    config, module = our_prompt("CAUSAL_LM", "MULTITASK_PROMPT_TUNING")
    save_adapter(tmp_path, config, module)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    for change in ({"prefix_task_cols": torch.ones(2, VIRTUAL, 2)}, {"prefix_task_rows": None}):
        changed = {name: t for name, t in (tensors | change).items() if t is not None}
        save_file(changed, tmp_path / WEIGHTS_NAME)
        with pytest.raises(WeightsError, match="prefix_task_"):
            load_adapter(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "model.pkl", "a.pth"])
def test_a_pickle_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    make_config("CAUSAL_LM", "PROMPT_TUNING").save_pretrained(tmp_path)
    torch.save({"prompt_embeddings": torch.ones(VIRTUAL, WIDTH)}, tmp_path / name)
    with pytest.raises(WeightsError, match=rf"only {name}: a pickle can run code.*save_pretrained"):
        load_adapter(tmp_path)


def test_the_remedy_for_a_pickle_works(tmp_path: Path) -> None:
    model = peft_model("CAUSAL_LM", "P_TUNING")
    model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(WeightsError, match="adapter_model.bin"):
        load_adapter(tmp_path)
    peft_loads(tmp_path, "CAUSAL_LM").save_pretrained(tmp_path)
    expected = model.get_prompt_embedding_to_save("default")
    assert_same(load_adapter(tmp_path).tensors, {"prompt_embeddings": expected})


def test_other_files_of_a_checkpoint_are_not_looked_at(tmp_path: Path) -> None:
    config, module = our_prompt("CAUSAL_LM", "P_TUNING")
    save_adapter(tmp_path, config, module)
    (tmp_path / "optimizer.pt").write_bytes(b"\x80\x04.")
    assert load_adapter(tmp_path).config.token_dim == WIDTH


@pytest.mark.parametrize(
    "values",
    [{"peft_type": "LORA"}, {"peft_type": "P_TUNING"}, {}, {"peft_type": "P_TUNING", "a": 1}],
)
@pytest.mark.filterwarnings("ignore:Unexpected keyword")
def test_a_config_that_describes_no_prompt_is_refused(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    save_file({"prompt_embeddings": torch.ones(VIRTUAL, WIDTH)}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ConfigError):
        load_adapter(tmp_path)


def test_a_prompt_that_diverged_leaves_the_saved_one_alone(tmp_path: Path) -> None:
    config, module = our_prompt("CAUSAL_LM", "PROMPT_TUNING")
    save_adapter(tmp_path, config, module)
    before = load_adapter(tmp_path)
    with torch.no_grad():
        module.embedding.weight[0, 0] = torch.nan  # type: ignore[union-attr,index,operator]
    with pytest.raises(WeightsError, match="holds NaN or infinity"):
        save_adapter(tmp_path, config, module)
    assert_same(load_adapter(tmp_path).tensors, before.tensors)


@pytest.mark.parametrize("same_config", [True, False])
def test_a_save_that_fails_half_way_never_mixes_two_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_config: bool
) -> None:
    config, module = our_prompt("CAUSAL_LM", "PROMPT_TUNING")
    save_adapter(tmp_path, config, module)
    real_fsync, calls = os.fsync, []

    def full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # the weights are in place, the config is not yet
            raise OSError(28, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr("os.fsync", full_disk)
    changed = config if same_config else replace(config, task_type="FEATURE_EXTRACTION")
    with pytest.raises(OSError, match="No space left"):
        save_adapter(tmp_path, changed, get_prompt_encoder(changed))
    if same_config:
        load_adapter(tmp_path)
    else:
        with pytest.raises(ConfigError, match="Can't find 'adapter_config.json'"):
            load_adapter(tmp_path)


def test_a_module_of_another_config_is_refused() -> None:
    with pytest.raises(WeightsError, match="expected"):
        table = {"prompt_embeddings": torch.ones(2, 5)}
        Adapter(PromptEncoderConfig(num_virtual_tokens=2, token_dim=4), table, {})
