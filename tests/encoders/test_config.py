import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import encoders
from encoders.config import (
    CONFIG_NAME,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
    get_peft_config,
)
from encoders.errors import ConfigError

peft = pytest.importorskip("peft")

METHODS = (
    "PromptEncoderConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "MultitaskPromptTuningConfig",
)

sizes = st.none() | st.integers(1, 100_000)
shared_fields = {
    "task_type": st.none() | st.sampled_from(list(peft.TaskType)),
    "base_model_name_or_path": st.none() | st.text(max_size=5),
    "revision": st.none() | st.text(max_size=5),
    "inference_mode": st.booleans(),
    "num_virtual_tokens": sizes,
    "token_dim": sizes,
    "num_transformer_submodules": st.none() | st.integers(1, 2),
    "num_attention_heads": sizes,
    "num_layers": sizes,
    "modules_to_save": st.none() | st.lists(st.text(max_size=5), max_size=2),
}
text_start = {
    "prompt_tuning_init": st.just("TEXT"),
    "prompt_tuning_init_text": st.text(max_size=5),
    "tokenizer_name_or_path": st.text(min_size=1, max_size=5),
    "tokenizer_kwargs": st.none() | st.just({"use_fast": True}),
}
own_fields: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "PromptEncoderConfig": {
        "encoder_reparameterization_type": st.sampled_from(["MLP", "LSTM"]),
        "encoder_hidden_size": sizes,
        "encoder_num_layers": st.integers(1, 9),
        "encoder_dropout": st.floats(0, 1),
    },
    "PrefixTuningConfig": {
        "init_weights": st.none() | st.just("zero"),
        "encoder_hidden_size": sizes,
        "prefix_projection": st.booleans(),
    },
    "PromptTuningConfig": text_start,
    "MultitaskPromptTuningConfig": {
        **text_start,
        "prompt_tuning_init_state_dict_path": st.none() | st.text(max_size=5),
        "prompt_tuning_init_task": st.integers(0, 9),
        "num_ranks": st.integers(1, 9),
        "num_tasks": st.integers(1, 9),
    },
}


def arguments(method: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the method's arguments, but those that must come together."""
    fields = shared_fields | own_fields[method]
    together = {name: fields.pop(name) for name in text_start if name in fields}
    some = st.fixed_dictionaries({}, optional=fields)
    if not together:
        return some
    return st.builds(lambda a, b: a | b, some, st.just({}) | st.fixed_dictionaries(together))


calls = st.sampled_from(METHODS).flatmap(lambda name: st.tuples(st.just(name), arguments(name)))


@given(calls)
@settings(max_examples=60, deadline=None)
def test_a_config_holds_what_pefts_holds(call: tuple[str, dict[str, Any]]) -> None:
    name, values = call
    ours, theirs = getattr(encoders, name)(**values), getattr(peft, name)(**values)
    assert ours.to_dict() == theirs.to_dict()
    assert list(ours.to_dict()) == list(theirs.to_dict())
    assert ours.is_prompt_learning
    assert type(ours).from_dict(ours.to_dict()) == ours


@given(calls)
@settings(max_examples=30, deadline=None)
def test_files_are_pefts_byte_for_byte_and_load_both_ways(
    tmp_path_factory: pytest.TempPathFactory, call: tuple[str, dict[str, Any]]
) -> None:
    name, values = call
    folder, other = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
    ours, theirs = getattr(encoders, name)(**values), getattr(peft, name)(**values)
    ours.save_pretrained(folder)
    theirs.save_pretrained(other)
    assert (folder / CONFIG_NAME).read_bytes() == (other / CONFIG_NAME).read_bytes()
    loaded = peft.PeftConfig.from_pretrained(str(folder))
    assert type(loaded) is type(theirs)
    assert loaded.to_dict() == theirs.to_dict()
    assert PeftConfig.from_pretrained(other) == ours
    assert get_peft_config(ours.to_dict()) == ours


@pytest.mark.parametrize("name", METHODS)
def test_positional_arguments_stand_as_in_peft(name: str) -> None:
    values = ["CAUSAL_LM", None, {"a": "b"}, "1", "base", "main", True, 3, 4, 1, 2, 2, ["head"]]
    expected = getattr(peft, name)(*values).to_dict()
    assert getattr(encoders, name)(*values).to_dict() == expected


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("base", [PeftConfig, PromptLearningConfig])
def test_a_file_gives_the_config_of_its_peft_type(
    tmp_path: Path, name: str, base: type[PeftConfig]
) -> None:
    expected = getattr(encoders, name)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    expected.save_pretrained(tmp_path / "a" / "b")
    assert base.from_pretrained(tmp_path / "a" / "b") == expected
    assert base.from_pretrained(str(tmp_path), subfolder="a/b") == expected
    assert type(base.from_pretrained(tmp_path / "a" / "b")) is type(expected)


def test_another_methods_file_is_refused(tmp_path: Path) -> None:
    PrefixTuningConfig(num_virtual_tokens=3).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a PrefixTuningConfig, not a PromptEncoderConfig"):
        PromptEncoderConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["seq_cls", "Seq_Cls", "SEQ_CLS", TaskType.SEQ_CLS])
def test_enums_may_be_strings_in_any_case(kind: str) -> None:
    config = get_peft_config({"peft_type": "p_tuning", "task_type": kind})
    assert type(config) is PromptEncoderConfig
    assert config.task_type is TaskType.SEQ_CLS
    assert config.to_dict()["task_type"] == "SEQ_CLS"
    prompt_tuning = PromptTuningConfig(prompt_tuning_init="sample_vocab")
    assert prompt_tuning.prompt_tuning_init is PromptTuningInit.SAMPLE_VOCAB


def test_text_in_lower_case_is_held_to_its_rules_too() -> None:
    with pytest.raises(ConfigError, match="tokenizer_name_or_path can't be None"):
        PromptTuningConfig(prompt_tuning_init="text", prompt_tuning_init_text="a")


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_task_type_is_the_value_error_of_peft(name: str) -> None:
    with pytest.raises(ValueError, match="Invalid task type") as ours:
        getattr(encoders, name)(task_type="POETRY")
    with pytest.raises(ValueError, match="Invalid task type") as theirs:
        getattr(peft, name)(task_type="POETRY")
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", ["PromptTuningConfig", "MultitaskPromptTuningConfig"])
@pytest.mark.parametrize(
    "values",
    [
        {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"},
        {"prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "a"},
        {"prompt_tuning_init": "RANDOM", "tokenizer_kwargs": {"use_fast": True}},
    ],
)
def test_a_start_that_lacks_something_is_the_value_error_of_peft(
    name: str, values: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="TEXT") as ours:
        getattr(encoders, name)(**values)
    with pytest.raises(ValueError, match="TEXT") as theirs:
        getattr(peft, name)(**values)
    assert str(ours.value) == str(theirs.value)


def test_keys_of_a_newer_file_are_ignored_with_a_warning(tmp_path: Path) -> None:
    PromptEncoderConfig(num_virtual_tokens=3).save_pretrained(tmp_path)
    path = tmp_path / CONFIG_NAME
    values = {**json.loads(path.read_text()), "zoom": 3, "runtime_config": {}}
    path.write_text(json.dumps(values))
    for load in (
        lambda: PeftConfig.from_pretrained(tmp_path),
        lambda: PeftConfig.from_dict(values),
        lambda: get_peft_config(values),
    ):
        with pytest.warns(UserWarning, match=r"\['runtime_config', 'zoom'\]") as caught:
            assert load() == PromptEncoderConfig(num_virtual_tokens=3)
        assert caught[0].filename == __file__


HOSTILE_VALUES = [
    *({"num_virtual_tokens": value} for value in (-1, 0, True, 1e30, 2**40, "x", [3], 3.0)),
    *({"encoder_dropout": value} for value in (-0.1, 1.1, 1e30, None, "0.1", True)),
    {"token_dim": -(10**30)},
    {"num_layers": {}},
    {"encoder_num_layers": None},
    {"encoder_num_layers": 0},
    {"encoder_reparameterization_type": "GRU"},
    {"encoder_reparameterization_type": None},
    {"encoder_reparameterization_type": ["MLP"]},
    {"task_type": 3},
    {"task_type": ["CAUSAL_LM"]},
    {"task_type": {}},
    {"task_type": ""},
    {"inference_mode": "false"},
    {"inference_mode": None},
    {"modules_to_save": "head"},
    {"modules_to_save": [{}]},
    {"base_model_name_or_path": 3},
    {"auto_mapping": []},
    {"peft_type": "LORA"},
    {"peft_type": "GRU" * 10_000},
    {"peft_type": None},
    {"peft_type": 3},
    {"peft_type": ["P_TUNING"]},
    {"peft_type": "PREFIX_TUNING", "init_weights": "one"},
    {"peft_type": "PREFIX_TUNING", "prefix_projection": 1},
    {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "FOO"},
    {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "AVERAGE_SOURCE_TASKS"},
    {"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": "x"},
    {"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": None},
    {"peft_type": "MULTITASK_PROMPT_TUNING", "num_ranks": 0},
    {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_task": -1},
]


@pytest.mark.parametrize("values", HOSTILE_VALUES, ids=lambda values: str(values)[:40])
def test_a_value_nothing_can_be_built_from_is_refused_with_the_file(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"peft_type": "P_TUNING", **values}))
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ConfigError, match=CONFIG_NAME) as caught,
    ):
        PeftConfig.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 600
    assert isinstance(caught.value, ValueError)


HOSTILE_FILES = {
    "empty": b"",
    "not JSON": b"{",
    "not text": b"\xff\xfe\x00",
    "a list": b'["peft_type"]',
    "null": b"null",
    "text": b'"peft_type"',
    "a number": b"3",
    "no peft_type": b"{}",
    "NaN": b'{"peft_type": "P_TUNING", "encoder_dropout": NaN}',
    "infinite": b'{"peft_type": "P_TUNING", "encoder_dropout": 1e999}',
    "a digit too many": b'{"peft_type": "P_TUNING", "num_layers": ' + b"9" * 10_000 + b"}",
    "deep": b'{"peft_type": ' + b"[" * 100_000,
    "huge": b'{"peft_type": "P_TUNING", "revision": "' + b"x" * (1 << 20) + b'"}',
}


@pytest.mark.parametrize("content", HOSTILE_FILES.values(), ids=HOSTILE_FILES.keys())
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(content)
    with pytest.raises(ConfigError, match=CONFIG_NAME):
        PeftConfig.from_pretrained(tmp_path)


def test_a_missing_file_is_the_value_error_of_peft_and_no_hub_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Can't find '{CONFIG_NAME}' at "):
        PeftConfig.from_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).mkdir()
    with pytest.raises(ConfigError, match="Can't find"):
        PeftConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="Can't find"):
        PeftConfig.from_pretrained("gpt2\0")


@pytest.mark.parametrize("values", [{}, {"num_virtual_tokens": 3}, {"peft_type": "CPT"}])
def test_a_dict_without_a_known_method_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is no prompt method; known are"):
        get_peft_config(values)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "mistral": ("MistralConfig", GROUPED),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", {**SHAPE, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma3 with pictures": ("Gemma3Config", {"text_config": {**GROUPED, "head_dim": 16}}),
    "gpt_neox": ("GPTNeoXConfig", SHAPE),
    "bert": ("BertConfig", SHAPE),
    "roberta": ("RobertaConfig", SHAPE),
    "t5": ("T5Config", {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8}),
    "bart": ("BartConfig", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}),
}


def base_config(name: str, **changes: Any) -> Any:
    kind, values = BASES[name]
    return getattr(transformers, kind)(**{**values, **changes})


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("given_sizes", [{}, {"num_layers": 1}, {"num_transformer_submodules": 1}])
def test_sizes_are_those_peft_takes_from_the_base(
    base: str, name: str, given_sizes: dict[str, int]
) -> None:
    task_type = "SEQ_2_SEQ_LM" if base in ("t5", "bart") else "CAUSAL_LM"
    values = {"task_type": task_type, "num_virtual_tokens": 3, **given_sizes}
    model_config = base_config(base)
    theirs = peft.utils._prepare_prompt_learning_config(getattr(peft, name)(**values), model_config)
    # PEFT does this one later, in PeftModel._setup_prompt_encoder.
    default = 2 if task_type == "SEQ_2_SEQ_LM" else 1
    theirs.num_transformer_submodules = theirs.num_transformer_submodules or default
    config = getattr(encoders, name)(**values)
    ours = config.completed(model_config)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.completed(model_config) == ours
    assert config == getattr(encoders, name)(**values), "the config itself is left alone"


@pytest.mark.parametrize("base", ["gpt2", "bert", "llama"])
def test_sizes_given_stand_as_in_peft(base: str) -> None:
    values = {"num_virtual_tokens": 3, "token_dim": 64, "encoder_hidden_size": 7}
    for name in ("PromptEncoderConfig", "PrefixTuningConfig"):
        theirs = peft.utils._prepare_prompt_learning_config(
            getattr(peft, name)(**values), base_config(base)
        )
        ours = getattr(encoders, name)(**values).completed(base_config(base))
        assert ours.token_dim == theirs.token_dim
        assert ours.encoder_hidden_size == theirs.encoder_hidden_size == 7


def test_a_prefix_has_the_sizes_of_the_decoders_keys() -> None:
    """PEFT takes d_model for T5's keys, and BART's encoder for its decoder."""
    config = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    t5 = config.completed(base_config("t5", d_kv=6, num_decoder_layers=3))
    assert (t5.num_layers, t5.num_attention_heads, t5.token_dim) == (3, 4, 24)
    bart = config.completed(base_config("bart", decoder_layers=1, decoder_attention_heads=2))
    assert (bart.num_layers, bart.num_attention_heads, bart.token_dim) == (1, 2, 32)
    p_tuning = PromptEncoderConfig(num_virtual_tokens=3).completed(base_config("t5", d_kv=6))
    assert p_tuning.token_dim == 32


def test_a_prefix_for_keys_of_many_sizes_is_refused() -> None:
    base = transformers.Gemma4TextConfig()
    with pytest.raises(ConfigError, match="differ in size"):
        PrefixTuningConfig(num_virtual_tokens=3).completed(base)


def test_a_base_that_does_not_tell_a_size_is_refused() -> None:
    base = transformers.PreTrainedConfig()
    with pytest.raises(ConfigError, match="none of num_hidden_layers"):
        PromptEncoderConfig(num_virtual_tokens=3).completed(base)


def test_an_encoder_decoder_has_twice_the_virtual_tokens() -> None:
    assert PromptEncoderConfig(num_virtual_tokens=3).total_virtual_tokens == 3
    config = PromptEncoderConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, token_dim=4)
    assert config.total_virtual_tokens == 6
    assert config.table_shape == (6, 4)
    prefix = PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, token_dim=4, num_layers=5
    )
    assert prefix.table_shape == (3, 40)


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (PromptEncoderConfig(token_dim=4), "num_virtual_tokens"),
        (PromptEncoderConfig(num_virtual_tokens=4), "token_dim"),
        (PrefixTuningConfig(num_virtual_tokens=4, token_dim=4), "num_layers"),
    ],
)
def test_a_missing_size_is_named(config: PromptLearningConfig, missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"{missing} is missing: .* config.completed"):
        _ = config.table_shape


def test_an_absurd_table_is_refused_before_memory_is_taken() -> None:
    config = PromptTuningConfig(num_virtual_tokens=1 << 24, token_dim=1 << 24)
    with pytest.raises(ConfigError, match="too large"):
        encoders.PromptEmbedding(config)
