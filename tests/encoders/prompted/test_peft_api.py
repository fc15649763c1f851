"""Scripts written for PEFT, with the import changed, beside the same scripts on real PEFT."""

import copy
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import encoders
from encoders.errors import ConfigError, PromptError, WeightsError
from encoders.prompted.peft_api import PeftModel, get_peft_model
from tests.encoders.tiny_models import make_base
from tests.tiny import make_tiny_base

peft = pytest.importorskip("peft")

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
MASK = torch.ones_like(IDS)

#: PEFT's own docstrings that show a prompt method.
DOCUMENTED = (
    "PromptEncoder",
    "PrefixEncoder",
    "PromptEmbedding",
    "PeftModelForCausalLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
)


def documented_example(name: str) -> tuple[str, str]:
    """The code of a PEFT docstring's example, and what it says it prints."""
    lines = textwrap.dedent(getattr(peft, name).__doc__).splitlines()
    code = [line.strip()[4:] for line in lines if line.strip()[:4] in (">>> ", "... ")]
    printed = [line.strip() for line in lines if line.strip().startswith("trainable params:")]
    return "\n".join(code), "".join(printed)


@pytest.fixture
def hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the examples load from a hub, here: bases of the right sizes without weights
    (on the meta device), and a tokenizer folder."""
    transformers.ByT5Tokenizer().save_pretrained(tmp_path / "t5-base")
    monkeypatch.chdir(tmp_path)
    gpt2_large = transformers.GPT2Config(n_embd=1280, n_layer=36, n_head=20)
    bert = transformers.BertConfig(vocab_size=28996)
    configs = {"gpt2-large": gpt2_large, "bert-base-cased": bert}
    for kind in ("CausalLM", "SequenceClassification", "TokenClassification"):
        auto = getattr(transformers, f"AutoModelFor{kind}")

        def load(name: str, auto: Any = auto) -> Any:
            with torch.device("meta"):
                return auto.from_config(configs[name])

        monkeypatch.setattr(auto, "from_pretrained", load)


@pytest.mark.parametrize("name", DOCUMENTED)
@pytest.mark.usefixtures("hub_names")
def test_pefts_documented_examples_run_with_the_import_changed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = documented_example(name)
    assert "from peft import" in code
    t5 = transformers.T5Config(vocab_size=384, d_model=768, d_ff=8, num_layers=1, num_heads=1)
    scope: dict[str, Any] = {"t5_model": transformers.T5Model(t5)}
    exec(code.replace("from peft import", "from encoders import"), scope)
    numbers = re.findall(r"[\d,]*\d", capsys.readouterr().out)
    if printed:  # what PEFT documents, up to the buffers and heads its older version counted
        documented = int(re.findall(r"\d+", printed)[0])
        assert abs(int(numbers[0].replace(",", "")) - documented) <= 1538, (numbers, printed)


def batches(num_steps: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 90, (num_steps, 3, 6), generator=generator)
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i} for i in ids]


def train(library: Any, base: Any, config: Any, num_steps: int = 4) -> tuple[Any, list[float]]:
    """The training loop of PEFT's quick tour."""
    torch.manual_seed(3)
    model = library.get_peft_model(base, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for batch in batches(num_steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return model.eval(), losses


CONFIGS: dict[str, Callable[[Any], Any]] = {
    "P_TUNING": lambda lib: lib.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8
    ),
    "LSTM": lambda lib: lib.PromptEncoderConfig(
        task_type=lib.TaskType.CAUSAL_LM,
        num_virtual_tokens=4,
        encoder_hidden_size=8,
        encoder_reparameterization_type="LSTM",
    ),
    "PROMPT_TUNING": lambda lib: lib.PromptTuningConfig(
        task_type="CAUSAL_LM",
        prompt_tuning_init=lib.PromptTuningInit.SAMPLE_VOCAB,
        num_virtual_tokens=4,
    ),
    "PREFIX_TUNING": lambda lib: lib.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_quick_tour_gives_what_peft_gives(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base("llama")
    ours, losses = train(encoders, copy.deepcopy(base), CONFIGS[kind](encoders))
    theirs, expected = train(peft, copy.deepcopy(base), CONFIGS[kind](peft))
    assert losses == pytest.approx(expected, abs=2e-5)
    assert type(ours).__name__ == type(theirs).__name__ == "PeftModelForCausalLM"
    ours.print_trainable_parameters()
    theirs.print_trainable_parameters()
    mine, other = capsys.readouterr().out.splitlines()
    assert mine == other

    ours.save_pretrained(str(tmp_path / "ours"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    for folder in ("ours", "theirs"):  # both libraries read both folders
        one = encoders.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / folder))
        two = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / folder)).eval()
        given = {"input_ids": IDS, "attention_mask": MASK}
        mine, other = one(**given).logits, two(**given).logits[:, -IDS.shape[1] :]
        assert torch.allclose(mine, other, atol=2e-5)
        said = one.generate(**given, max_new_tokens=4, do_sample=False)
        assert torch.equal(said, two.generate(**given, max_new_tokens=4, do_sample=False))


def test_an_auto_model_finds_its_base(tmp_path: Path) -> None:
    folder = make_tiny_base(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model, _ = train(encoders, base, CONFIGS["P_TUNING"](encoders), num_steps=1)
    assert model.active_peft_config.base_model_name_or_path == str(folder)
    model.save_pretrained(tmp_path / "adapter")
    config = encoders.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert config.base_model_name_or_path == str(folder)
    loaded = encoders.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    model.peft_config["default"].base_model_name_or_path = "somebody/base"
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="'somebody/base' is no local folder"):
        encoders.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")


def two_adapters() -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(make_base("llama"), CONFIGS["P_TUNING"](encoders), "one")
    model.add_adapter("two", CONFIGS["PREFIX_TUNING"](encoders))
    return model.eval()


def test_adapter_names_mix_adapters_in_one_batch_where_peft_ignores_them() -> None:
    model = two_adapters()
    mixed = model(IDS, adapter_names=["two", "one"]).logits
    for row, name in enumerate(["two", "one"]):
        model.set_adapter(name)
        assert torch.allclose(mixed[row], model(IDS).logits[row], atol=1e-5)
    said = model.generate(IDS, adapter_names=["two", "one"], max_new_tokens=3, do_sample=False)
    assert said.shape == (2, 7)
    with pytest.raises(PromptError, match="there is no prompt 'three'; attached are: 'one', 'two'"):
        model(IDS, adapter_names=["one", "three"])

    base = make_base("llama")
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, CONFIGS["P_TUNING"](peft), "one").eval()
    theirs.add_adapter("two", CONFIGS["P_TUNING"](peft))
    both = [theirs(IDS, adapter_names=names).logits for names in (["one"] * 2, ["two"] * 2)]
    assert torch.equal(*both), "PEFT takes the names and runs the active adapter all the same"


def test_adapters_are_set_and_deleted() -> None:
    model = two_adapters()
    assert model.active_adapters == ["one"]
    assert model.get_prompt(3).shape == (3, 4, 32)
    model.set_adapter("two")
    model.delete_adapter("two")
    assert model.active_adapter == "one"
    assert list(model.peft_config) == ["one"]
    with pytest.raises(PromptError, match="no prompt 'two'"):
        model.set_adapter("two")


def test_a_disabled_adapter_leaves_the_bare_base() -> None:
    model = two_adapters()
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, model.get_base_model()(IDS).logits)
        said = model.generate(IDS, max_new_tokens=2, do_sample=False)
    assert torch.equal(said, model.base.generate(IDS, max_new_tokens=2, do_sample=False))
    assert not torch.equal(model(IDS).logits, model.base(IDS).logits)


def test_adapters_are_saved_side_by_side_under_safe_names_alone(tmp_path: Path) -> None:
    model = two_adapters()
    model.save_pretrained(tmp_path / "both")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["one", "two"]
    again = PeftModel.from_pretrained(make_base("llama"), tmp_path / "both", subfolder="one")
    again.load_adapter(tmp_path / "both" / "two", "two")
    assert torch.allclose(
        again(IDS, adapter_names=["default", "two"]).logits,
        model(IDS, adapter_names=["one", "two"]).logits,
        atol=1e-6,
    )
    model.add_adapter("../three", CONFIGS["P_TUNING"](encoders))
    with pytest.raises(PromptError, match=r"'../three' cannot be a folder's"):
        model.save_pretrained(tmp_path / "all")
    assert not (tmp_path / "all").exists(), "nothing is written"


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_adapter_can_be_trained_on_from_where_it_was(kind: str, tmp_path: Path) -> None:
    base = make_base("llama")
    saved, _ = train(peft, copy.deepcopy(base), CONFIGS[kind](peft))
    saved.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    (batch,) = batches(1)
    before = loss_of(saved, batch)
    assert loss_of(model, batch) == pytest.approx(before, abs=1e-4)
    optimizer = torch.optim.AdamW(list(model.trainable_parameters()), lr=3e-3)
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    assert loss_of(model, batch) < before
    frozen = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert list(frozen.trainable_parameters()) == []


def test_pefts_own_ways_of_training_on_are_refused_or_start_elsewhere(tmp_path: Path) -> None:
    """PEFT refuses to load a trainable prompt; loading its weights into a new one puts the saved
    table into the encoder's input: no error, and another prompt."""
    base = make_base("llama")
    saved, _ = train(peft, copy.deepcopy(base), CONFIGS["P_TUNING"](peft))
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Cannot set a prompt learning adapter to trainable"):
        peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    theirs = peft.get_peft_model(copy.deepcopy(base), CONFIGS["P_TUNING"](peft))
    peft.set_peft_model_state_dict(theirs, peft.load_peft_weights(str(tmp_path)))
    (batch,) = batches(1)
    assert abs(loss_of(theirs, batch) - loss_of(saved, batch)) > 1e-3


@torch.no_grad()
def loss_of(model: Any, batch: dict[str, Tensor]) -> float:
    return float(model(**batch).loss)


def test_a_head_is_saved_and_loaded_with_its_adapter(tmp_path: Path) -> None:
    base = make_base("bert", "SEQ_CLS")
    config = encoders.PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=8
    )
    model = get_peft_model(copy.deepcopy(base), config)
    optimizer = torch.optim.AdamW(list(model.trainable_parameters()), lr=1e-2)
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.allclose(again(IDS).logits, model(IDS).logits, atol=1e-6)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    expected = theirs(input_ids=IDS, attention_mask=MASK).logits
    assert torch.allclose(again(IDS, MASK).logits, expected, atol=1e-5)
    other = make_base("bert", "SEQ_CLS", num_labels=5)
    with pytest.raises(WeightsError, match="its heads do not fit"):
        PeftModel.from_pretrained(other, tmp_path)


def test_a_seq2seq_adapter_of_peft_gives_what_it_gave_there(tmp_path: Path) -> None:
    """PEFT never uses the decoder's half of such a table; Tutti does, and its files say so."""
    base = make_base("t5", "SEQ_2_SEQ_LM")
    fields = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 3}
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.PromptTuningConfig(**fields)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    given = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "theirs")
    assert torch.allclose(loaded(**given).logits, theirs(**given).logits, atol=1e-5)
    ours = get_peft_model(copy.deepcopy(base), encoders.PromptTuningConfig(**fields)).eval()
    ours.save_pretrained(tmp_path / "ours")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    assert torch.allclose(again(**given).logits, ours(**given).logits, atol=1e-6)
    again.save_pretrained(tmp_path / "again")
    assert encoders.load_adapter(tmp_path / "again").is_pefts is False
    loaded.save_pretrained(tmp_path / "again")
    assert encoders.load_adapter(tmp_path / "again").is_pefts is True


def test_a_model_is_a_module_whose_adapters_alone_train() -> None:
    model = two_adapters()
    assert isinstance(model, nn.Module)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.startswith("prompts.") for name in trainable)
    assert model.config is model.base.config
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
