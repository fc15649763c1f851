"""A prompt's keys and values in every layer: what a causal base computes from the virtual tokens,
or what prefix tuning learned.

Fed back as a cache they stand for the prompt, so that serving never runs it again. The prompt takes
the positions 0 to V-1; text goes on at V. Shapes: L layers, G key-value heads, V virtual tokens, K
head_dim, D token_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.config import PrefixTuningConfig
from encoders.errors import WeightsError
from encoders.files.durable_file import write_durably
from encoders.files.weights_file import check_finite, check_tensors, dump_tensors, open_weights
from encoders.files.weights_header import PROMPT_DTYPES, TensorEntry
from encoders.formats.prompt_embeds import check_width
from encoders.modules.eval_mode import eval_mode

KIND = "key_values"


@dataclass(frozen=True)
class KeyValues:
    """`keys` and `values` [L, G, V, K] in one dtype; `model_type` is transformers' name of the
    base's architecture, or None where no base was run (prefix tuning)."""

    keys: Tensor
    values: Tensor
    model_type: str | None = None

    def __post_init__(self) -> None:
        _check({"keys": self.keys, "values": self.values}, "the prompt's keys and values")

    @classmethod
    def of_prompt(cls, base: Any, virtual_tokens: Tensor) -> "KeyValues":
        """Run virtual tokens [V, D] through the causal transformers model `base`, once.

        Raises WeightsError for tokens of another width, and for a base that is not causal or keeps
        only some of its keys, or keys of several sizes.
        """
        if base.config.is_encoder_decoder:
            raise WeightsError(f"a {base.config.model_type} is not causal: it has an encoder")
        check_width(base, virtual_tokens)
        embeds = virtual_tokens.to(base.device, base.dtype).unsqueeze(0)
        with eval_mode(base):
            outputs = base.base_model(inputs_embeds=embeds, use_cache=True)
        layers = [
            (getattr(layer, "keys", None), getattr(layer, "values", None))
            for layer in getattr(outputs.get("past_key_values"), "layers", [])
        ]
        shapes = {None if t is None else tuple(t.shape) for layer in layers for t in layer}
        if len(shapes) != 1 or {shape and shape[2] for shape in shapes} != {len(virtual_tokens)}:
            raise WeightsError(
                f"a {base.config.model_type} keeps keys and values of the shapes {shapes}; one "
                f"shape with all {len(virtual_tokens)} virtual tokens is needed"
            )
        keys, values = (torch.cat(tensors) for tensors in zip(*layers, strict=True))
        return cls(keys, values, base.config.model_type)

    @classmethod
    def of_prefix(cls, config: PrefixTuningConfig, table: Tensor) -> "KeyValues":
        """A prefix table [V, L*2*D], as PEFT lays it out: each layer's keys, then its values."""
        check_tensors({"table": table}, {"table": config.table_shape}, PROMPT_DTYPES, "the prefix")
        num_heads = config.required("num_attention_heads")
        layers = table.detach().view(len(table), config.required("num_layers"), 2, num_heads, -1)
        keys, values = layers.permute(2, 1, 3, 0, 4)  # from [V, L, 2, G, K]
        return cls(keys, values)

    def check_base(self, base: Any) -> None:
        """Raise WeightsError unless the keys have the sizes, dtype and architecture of `base`."""
        sizes = PrefixTuningConfig(num_virtual_tokens=self.keys.shape[2]).completed(base.config)
        heads = sizes.required("num_attention_heads")
        head_dim = sizes.required_token_dim // heads
        shape = (sizes.required("num_layers"), heads, self.keys.shape[2], head_dim)
        where = f"the prompt's keys and values for this {base.config.model_type}"
        found = {"keys": self.keys, "values": self.values}
        check_tensors(found, dict.fromkeys(found, shape), (base.dtype,), where)
        if self.model_type not in (None, base.config.model_type):
            raise WeightsError(f"{where} were computed by another base, a {self.model_type}")

    def cache(self, base: Any, batch_size: int = 1) -> Any:
        """A transformers DynamicCache for `base`, to pass as `past_key_values`.

        Raises WeightsError as `check_base`.
        """
        from transformers import DynamicCache

        self.check_base(base)
        cache = DynamicCache(config=base.config)
        rows = (batch_size, *self.keys.shape[1:])
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(
                keys.to(base.device).expand(rows), values.to(base.device).expand(rows), layer
            )
        return cache


def export_key_values(path: str | Path, key_values: KeyValues) -> None:
    """Write keys and values as one safetensors file. Raises WeightsError."""
    tensors = {"keys": key_values.keys, "values": key_values.values}
    check_finite(tensors, str(path))
    facts = {"kind": KIND, "model_type": key_values.model_type, "first_position": 0}
    write_durably(Path(path), [dump_tensors(tensors, facts)])


def load_key_values(path: str | Path) -> KeyValues:
    """Read what `export_key_values` wrote. Raises WeightsError, before memory is taken."""
    with open_weights(Path(path)) as weights:
        model_type = _model_type(weights.metadata, str(path))
        _check(weights.entries, str(path))
        tensors = weights.read()
    return KeyValues(tensors["keys"], tensors["values"], model_type)


def _model_type(metadata: Any, where: str) -> str | None:
    match metadata:
        case {"kind": kind, "model_type": str() | None as model_type, "first_position": 0}:
            if kind == KIND:
                return model_type
    raise WeightsError(f"{where}: its header does not say that it holds keys and values from 0 on")


def _check(found: Mapping[str, TensorEntry] | Mapping[str, Tensor], where: str) -> None:
    """Raise WeightsError unless there are keys and values of one shape [L, G, V, K] and dtype."""
    entry = found.get("keys")
    shape = tuple(entry.shape) if entry is not None else ()
    dtypes = (entry.dtype,) if entry is not None and entry.dtype in PROMPT_DTYPES else PROMPT_DTYPES
    check_tensors(found, {"keys": shape, "values": shape}, dtypes, where)
    if len(shape) != 4 or 0 in shape:
        raise WeightsError(f"{where}: keys have four dimensions [L, G, V, K], not {shape}")
