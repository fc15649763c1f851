"""A bank equals a loop over separate encoders and torch's optimizers, and its slots are alone."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from encoders.bank.encoder_bank import EncoderBank
from encoders.bank.encoder_step import EncoderStep, virtual_tokens
from encoders.bank.schedule import Schedule
from encoders.bank.slot import Slot, SlotOptions
from encoders.config import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from encoders.errors import ConfigError, EncoderError
from encoders.modules.anchored_prompt import AnchoredPrompt
from encoders.modules.deep_prompt_encoder import DeepPromptEncoder, DeepPromptEncoderConfig
from encoders.modules.prefix_encoder import PrefixEncoder
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.modules.prompt_encoder import PromptEncoder

V, D, H = 5, 16, 32
KINDS = ("table", "mlp", "lstm", "deep", "anchored mlp", "anchored lstm")


def make_encoder(
    kind: str, seed: int, num_virtual_tokens: int = V, dropout: float = 0.0
) -> nn.Module:
    torch.manual_seed(seed)
    if kind.startswith("anchored "):
        encoder = make_encoder(kind.removeprefix("anchored "), seed, num_virtual_tokens)
        return AnchoredPrompt(torch.randn(num_virtual_tokens, D), encoder, scale=0.5)
    if kind == "table":
        return PromptEmbedding(
            PromptTuningConfig(num_virtual_tokens=num_virtual_tokens, token_dim=D)
        )
    if kind == "deep":
        return DeepPromptEncoder(
            DeepPromptEncoderConfig(
                num_virtual_tokens=num_virtual_tokens, token_dim=D, hidden_size=H, num_layers=4
            )
        )
    return PromptEncoder(
        PromptEncoderConfig(
            num_virtual_tokens=num_virtual_tokens,
            token_dim=D,
            encoder_reparameterization_type=kind.upper(),
            encoder_hidden_size=H,
            encoder_dropout=dropout,
        )
    )


def loss_of(tokens: Tensor, seed: int) -> Tensor:
    """Some loss with a gradient that depends on the tokens."""
    target = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed)).to(tokens)
    return ((tokens - target) ** 2).sum() + tokens.sin().sum()


def torch_optimizer(module: nn.Module, options: SlotOptions) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), momentum=options.momentum, **common)
    if options.optimizer == "adafactor":
        return torch.optim.Adafactor(module.parameters(), **common)
    return torch.optim.AdamW(module.parameters(), betas=options.betas, eps=options.eps, **common)


def train_alone(module: nn.Module, options: SlotOptions, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The plain way: the module's own forward, autograd, clip_grad_norm_, torch's optimizer."""
    optimizer = torch_optimizer(module, options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, options.schedule.factor)
    for seed in seeds:
        optimizer.zero_grad()
        loss_of(module.virtual_tokens(), seed).backward()  # type: ignore[operator]
        if options.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), options.max_grad_norm)
        optimizer.step()
        schedule.step()
    return module.state_dict()


def take_step(seeds: dict[Slot, int], stepping: Sequence[Slot] | None = None) -> None:
    """One step of all slots, each with the loss of its seed."""
    step = EncoderStep(list(seeds))
    for seed, leaf in zip(seeds.values(), step.leaves, strict=True):
        loss_of(leaf, seed).backward()
    step.finish(list(seeds) if stepping is None else stepping)


def double(kind: str, seed: int, num_virtual_tokens: int = V) -> nn.Module:
    """AdamW makes much of a gradient's rounding: exactness is told in double precision."""
    return make_encoder(kind, seed, num_virtual_tokens).double()


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


def all_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


OPTIONS = st.builds(
    SlotOptions,
    learning_rate=st.sampled_from([1e-4, 1e-3, 1e-2]),
    optimizer=st.sampled_from(["adamw", "sgd", "adafactor"]),
    weight_decay=st.sampled_from([0.0, 0.01, 0.1]),
    max_grad_norm=st.sampled_from([None, 0.5, 100.0]),
    schedule=st.builds(
        Schedule,
        kind=st.sampled_from(["constant", "linear", "cosine"]),
        num_steps=st.integers(4, 8),
        warmup_steps=st.integers(0, 3),
    ),
    momentum=st.sampled_from([0.0, 0.9]),
)
MEMBERS = st.lists(
    st.tuples(st.sampled_from(KINDS), OPTIONS, st.integers(1, 6)), min_size=1, max_size=6
)


@settings(max_examples=25, deadline=None)
@given(MEMBERS)
def test_a_bank_equals_a_loop_over_encoders_and_torchs_optimizers(
    members: list[tuple[str, SlotOptions, int]],
) -> None:
    bank = EncoderBank()
    encoders = [
        double(kind, seed, num_virtual_tokens=3 + seed % 2)
        for seed, (kind, _, _) in enumerate(members)
    ]
    slots = [
        bank.admit(encoder, options)
        for encoder, (_, options, _) in zip(encoders, members, strict=True)
    ]
    for step in range(max(steps for _, _, steps in members)):
        take_step({s: step for s, m in zip(slots, members, strict=True) if step < m[2]})
    for slot, encoder, (_, options, steps) in zip(slots, encoders, members, strict=True):
        assert slot.num_steps == steps
        assert_close(slot.weights(), train_alone(encoder, options, range(steps)))


@pytest.mark.parametrize("kind", KINDS)
def test_its_tokens_and_their_gradients_are_the_modules_own(kind: str) -> None:
    bank = EncoderBank()
    encoders = [make_encoder(kind, seed) for seed in range(3)]
    slots = [bank.admit(encoder, SlotOptions(1.0, "sgd")) for encoder in encoders]
    step = EncoderStep(slots)
    for leaf, encoder in zip(step.leaves, encoders, strict=True):
        tokens = encoder.virtual_tokens()  # type: ignore[operator]
        torch.testing.assert_close(leaf.detach(), tokens.detach(), rtol=1e-5, atol=1e-6)
        loss_of(leaf, 0).backward()
        loss_of(tokens, 0).backward()
    step.finish(slots)
    for slot, encoder in zip(slots, encoders, strict=True):
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None
            stepped = parameter.detach() - parameter.grad
            torch.testing.assert_close(slot.weights()[name], stepped, rtol=1e-4, atol=1e-5)


def train_one_of(
    seeds: Sequence[int], make: Callable[[int], nn.Module], optimizer: Any, num_steps: int = 3
) -> dict[str, Tensor]:
    """The weights of the encoder of seed 7 after some steps beside those of the other seeds."""
    options = SlotOptions(1e-2, optimizer, weight_decay=0.01, max_grad_norm=0.1)
    bank = EncoderBank()
    slots = {seed: bank.admit(make(seed), options) for seed in seeds}
    for step in range(num_steps):
        take_step({slot: seed + step for seed, slot in slots.items()})
    return slots[7].weights()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_ends_with_the_same_bits_alone_and_among_31_others(
    kind: str, optimizer: Any
) -> None:
    make = partial(make_encoder, kind)
    assert all_equal(train_one_of([7], make, optimizer), train_one_of(range(32), make, optimizer))


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_the_bits_are_the_same_on_two_threads_at_real_sizes(kind: str) -> None:
    """Matrix kernels choose how to share their work by size: SmolLM2's token_dim is 576."""

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        config = PromptEncoderConfig(
            num_virtual_tokens=10,
            token_dim=576,
            encoder_reparameterization_type=kind.upper(),
            encoder_hidden_size=128,
        )
        return PromptEncoder(config)

    torch.set_num_threads(2)
    try:
        alone = train_one_of([7], make, "adamw", num_steps=2)
        assert all_equal(alone, train_one_of(range(6, 11), make, "adamw", num_steps=2))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_slots_are_filled_and_emptied_while_the_others_learn(kind: str) -> None:
    bank = EncoderBank()
    options = SlotOptions(1e-2, max_grad_norm=1.0)
    stays = bank.admit(double(kind, 0), options)
    leaves_early = bank.admit(double(kind, 1), options)
    last = bank.admit(double(kind, 2), options)
    take_step({stays: 0, leaves_early: 0, last: 0})
    gone = leaves_early.weights()
    bank.release(leaves_early)  # the last one moves into the gap
    assert all_equal(leaves_early.weights(), gone)
    take_step({stays: 1, last: 1})
    late = bank.admit(double(kind, 3), options)
    take_step({late: 0, last: 2, stays: 2})
    assert len(bank) == 3
    for seed, slot in {0: stays, 2: last}.items():
        assert_close(slot.weights(), train_alone(double(kind, seed), options, range(3)))
    assert_close(late.weights(), train_alone(double(kind, 3), options, range(1)))


def test_a_slot_that_is_not_stepped_stays_as_it_was_and_so_do_its_moments() -> None:
    bank = EncoderBank()
    options = SlotOptions(1e-2)
    slots = [bank.admit(double("mlp", seed), options) for seed in range(3)]
    take_step(dict.fromkeys(slots, 0))
    before = slots[1].state()
    take_step(dict.fromkeys(slots, 1), stepping=[slots[0], slots[2]])
    after = slots[1].state()
    assert all_equal(before["weights"], after["weights"])
    assert all_equal(before["optimizer"], after["optimizer"])
    assert slots[1].num_steps == 1
    take_step(dict.fromkeys(slots, 2))
    assert_close(slots[2].weights(), train_alone(double("mlp", 2), options, [0, 1, 2]))


def test_a_frozen_slot_keeps_its_weights_and_learns_on_when_thawed() -> None:
    bank = EncoderBank()
    options = SlotOptions(1e-2)
    frozen, other = (bank.admit(double("mlp", seed), options) for seed in range(2))
    frozen.is_frozen = True
    before = frozen.weights()
    take_step({frozen: 0, other: 0})
    assert all_equal(before, frozen.weights())
    frozen.is_frozen = False
    take_step({frozen: 0, other: 1})
    assert_close(frozen.weights(), train_alone(double("mlp", 0), options, [0]))


def test_a_nan_reaches_no_other_slot() -> None:
    def train(factor: float) -> dict[str, Tensor]:
        bank = EncoderBank()
        options = SlotOptions(1e-2, max_grad_norm=1.0)
        slots = [bank.admit(make_encoder("mlp", seed), options) for seed in range(3)]
        step = EncoderStep(slots)
        for leaf, each in zip(step.leaves, (1.0, factor, 1.0), strict=True):
            (loss_of(leaf, 0) * each).backward()
        step.finish(slots)
        return slots[2].weights()

    assert all_equal(train(math.nan), train(1.0))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("kind", ["mlp", "lstm", "anchored lstm"])
def test_a_restored_slot_goes_on_to_the_bit(kind: str, optimizer: Any) -> None:
    options = SlotOptions(1e-2, optimizer, momentum=0.9, seed=3)
    bank = EncoderBank()
    slots = [bank.admit(make_encoder(kind, seed, dropout=0.3), options) for seed in range(3)]
    take_step(dict.fromkeys(slots, 0))
    state = slots[1].state()
    other = EncoderBank()
    resumed = other.admit(make_encoder(kind, 99, dropout=0.3), options)
    resumed.restore(state)
    for seed in (1, 2):
        take_step(dict.fromkeys(slots, seed))
        take_step({resumed: seed})
    assert all_equal(slots[1].weights(), resumed.weights())
    assert resumed.num_steps == 3


def test_a_reset_slot_learns_like_a_new_one() -> None:
    options = SlotOptions(1e-2, schedule=Schedule("linear", 5))
    bank = EncoderBank()
    slots = [bank.admit(double("mlp", seed), options) for seed in range(2)]
    take_step(dict.fromkeys(slots, 0))
    slots[0].reset(double("mlp", 9))
    for seed in (1, 2):
        take_step(dict.fromkeys(slots, seed))
    assert_close(slots[0].weights(), train_alone(double("mlp", 9), options, [1, 2]))


def test_dropout_is_each_slots_own_and_off_outside_training() -> None:
    def tokens(seeds: Sequence[int]) -> list[Tensor]:
        bank = EncoderBank()
        slots = [
            bank.admit(make_encoder("lstm", 0, dropout=0.5), SlotOptions(1e-2, seed=seed))
            for seed in seeds
        ]
        return [leaf.detach() for leaf in EncoderStep(slots).leaves]

    alone, among = tokens([4])[0], tokens([3, 4, 5])
    assert torch.equal(alone, among[1])
    assert not torch.allclose(among[0], among[1])
    bank = EncoderBank()
    encoder = make_encoder("lstm", 0, dropout=0.5).eval()
    slot = bank.admit(encoder, SlotOptions(1e-2))
    expected = encoder.virtual_tokens()  # type: ignore[operator]
    torch.testing.assert_close(virtual_tokens([slot])[0], expected, rtol=1e-5, atol=1e-6)


def test_dropout_masks_keep_the_mean() -> None:
    bank = EncoderBank()
    slot = bank.admit(make_encoder("lstm", 0, dropout=0.25), SlotOptions(1e-2))
    values = slot.block.shape.dropout_masks([slot.generator] * 200)
    assert values is not None
    assert values.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert float(values.mean()) == pytest.approx(1.0, abs=0.02)


def test_a_module_can_load_a_slots_weights() -> None:
    bank = EncoderBank()
    slot = bank.admit(make_encoder("anchored mlp", 0), SlotOptions(1e-2))
    take_step({slot: 0})
    module = make_encoder("anchored mlp", 5)
    module.load_state_dict(slot.weights())
    expected = virtual_tokens([slot])[0]
    torch.testing.assert_close(
        module.virtual_tokens().detach(),
        expected,
        rtol=1e-5,
        atol=1e-6,  # type: ignore[operator]
    )


def test_what_a_bank_cannot_hold_is_refused() -> None:
    bank = EncoderBank()
    prefix = PrefixEncoder(
        PrefixTuningConfig(num_virtual_tokens=2, token_dim=4, num_layers=2, num_attention_heads=2)
    )
    with pytest.raises(EncoderError, match="PrefixEncoder cannot be stacked"):
        bank.admit(prefix, SlotOptions(1e-2))
    half_frozen = make_encoder("mlp", 0)
    next(half_frozen.parameters()).requires_grad_(False)
    with pytest.raises(EncoderError, match="learns in all its weights"):
        bank.admit(half_frozen, SlotOptions(1e-2))
    with pytest.raises(ConfigError, match="no optimizer 'adam'"):
        SlotOptions(1e-2, "adam")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 or more"):
        SlotOptions(-1.0)
    with pytest.raises(ConfigError, match="no schedule"):
        Schedule("step")  # type: ignore[arg-type]


def test_slots_are_used_rightly_or_refused() -> None:
    bank = EncoderBank()
    slot, other = (bank.admit(make_encoder("mlp", seed), SlotOptions(1e-2)) for seed in range(2))
    lstm = bank.admit(make_encoder("lstm", 0), SlotOptions(1e-2))
    with pytest.raises(EncoderError, match="nothing was computed"):
        EncoderStep([slot]).finish([slot])
    with pytest.raises(EncoderError, match="another encoder"):
        slot.restore(lstm.state())
    with pytest.raises(EncoderError, match="another shape"):
        slot.reset(make_encoder("lstm", 0))
    bank.release(other)
    with pytest.raises(EncoderError, match="released already"):
        bank.release(other)


def test_many_encoders_take_no_more_room_than_their_weights_and_moments() -> None:
    bank = EncoderBank()
    slots = [bank.admit(make_encoder("mlp", seed), SlotOptions(1e-2)) for seed in range(130)]
    own = sum(tensor.numel() for tensor in slots[0].weights().values())
    blocks = {id(slot.block): slot.block for slot in slots}.values()
    capacity = sum(block.capacity for block in blocks)
    assert len(blocks) == 3
    assert capacity - len(slots) < 64
    assert all(block._weights.shape[1] == own for block in blocks)
    for slot in islice(slots, 129):
        bank.release(slot)
    assert len(bank) == 1
    assert slots[129].row == 0
