"""Configs of the prompt methods, with PEFT's class names, field names, order, defaults and values.

`adapter_config.json` is read and written as PEFT 0.21.2 does. Unlike PEFT: a string in any case is
taken for an enum everywhere, every value is checked at construction, and no file is looked for on a
hub. A config never holds what PEFT's has no field for; Tutti's own encoders have configs of their
own. Sources: PEFT's `config.py`, `tuners/*/config.py` and `utils/other.py`.
"""

import json
import reprlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self

from encoders.errors import ConfigError, WeightsError
from encoders.field_checks import check_fields, checked_table_shape, member_of
from encoders.files.untrusted_file import read_json

CONFIG_NAME = "adapter_config.json"
PEFT_VERSION = "0.21.2"  # the version whose file format is written
MAX_CONFIG_BYTES = 1 << 20


class PeftType(StrEnum):
    """The prompt methods, as PEFT names them."""

    PROMPT_TUNING = "PROMPT_TUNING"
    MULTITASK_PROMPT_TUNING = "MULTITASK_PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"


class TaskType(StrEnum):
    """What the base is used for, as PEFT names it."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PromptEncoderReparameterizationType(StrEnum):
    """How P-tuning computes its virtual tokens: an MLP or a bidirectional LSTM with an MLP."""

    MLP = "MLP"
    LSTM = "LSTM"


class PromptTuningInit(StrEnum):
    """Where a prompt table starts: a text's embeddings, random vocabulary, or random numbers."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


class MultitaskPromptTuningInit(StrEnum):
    """Where a multitask prompt starts: as above, or from a trained source prompt's file."""

    TEXT = "TEXT"
    RANDOM = "RANDOM"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"


@dataclass
class PeftConfig:
    """What every adapter's config holds. `inference_mode` asks for the bare table, without the
    network that computed it. Raises ConfigError (a ValueError) for a wrong value."""

    _ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {}
    _PEFT_TYPE: ClassVar[PeftType | None] = None

    task_type: TaskType | str | None = None
    peft_type: PeftType | str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    def __post_init__(self) -> None:
        if self.task_type is not None and member_of(TaskType, self.task_type) is None:
            raise ConfigError(
                f"Invalid task type: '{self.task_type}'. Must be one of the following task types: "
                f"{', '.join(TaskType)}."
            )
        self.task_type = member_of(TaskType, self.task_type)
        self.peft_version = self.peft_version or PEFT_VERSION
        self.peft_type = self._PEFT_TYPE or self.peft_type
        for name, kind in self._ENUMS.items():
            value = getattr(self, name)
            if member_of(kind, value) is None:
                raise ConfigError(
                    f"{name} {reprlib.repr(value)} not recognized. "
                    f"Please use one of {', '.join(kind)}."
                )
            setattr(self, name, member_of(kind, value))
        check_fields(self, indices=frozenset({"prompt_tuning_init_task"}))

    @property
    def is_prompt_learning(self) -> bool:
        return self._PEFT_TYPE is not None

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON values only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config of the method that `values["peft_type"]` names (else of this class).

        Keys of newer files are ignored with a warning. Raises ConfigError for what cannot be used,
        or for another method's config than the one asked for.
        """
        return cls._from_dict(values, stacklevel=3)

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any], stacklevel: int) -> Self:
        kind = _config_class(values.get("peft_type"), cls)
        if not issubclass(kind, cls):
            raise ConfigError(f"this is a {kind.__name__}, not a {cls.__name__}")
        known = {field.name for field in fields(kind)}
        unknown = sorted(set(values) - known)
        if unknown:
            warnings.warn(
                f"Unexpected keyword arguments {unknown} for class {kind.__name__}, these are "
                "ignored: the file was written by a newer or another library",
                stacklevel=stacklevel,
            )
        return kind(**{name: value for name, value in values.items() if name in known})

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `adapter_config.json` into a folder, which is made if need be."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None
    ) -> Self:
        """Read a folder's `adapter_config.json`. Raises ConfigError, with the file's path."""
        path = Path(pretrained_model_name_or_path) / (subfolder or "") / CONFIG_NAME
        if not path.is_file():
            raise ConfigError(f"Can't find '{CONFIG_NAME}' at '{path.parent}' (a local folder)")
        try:
            values = read_json(path, MAX_CONFIG_BYTES)
        except WeightsError as error:
            raise ConfigError(str(error)) from error
        if not isinstance(values, dict) or "peft_type" not in values:
            raise ConfigError(f"{path}: not an adapter's config: it names no peft_type")
        try:
            return cls._from_dict(values, stacklevel=3)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


@dataclass
class PromptLearningConfig(PeftConfig):
    """What the prompt methods share. Sizes left None are the base's (see `completed`).

    `token_dim` is the base's embedding size (prefix tuning: the size of one layer's keys).
    `num_transformer_submodules` is 2 where encoder and decoder each get `num_virtual_tokens`.
    `modules_to_save` names the base's heads that are trained and saved beside the prompt.
    """

    _NUM_LAYERS: ClassVar[tuple[str, ...]] = ("num_hidden_layers", "num_layers", "n_layer")
    _NUM_HEADS: ClassVar[tuple[str, ...]] = ("num_attention_heads", "n_head")

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    @property
    def total_virtual_tokens(self) -> int:
        """Virtual tokens of all submodules. Raises ConfigError where their number is missing."""
        return self.required("num_virtual_tokens") * self._num_submodules

    @property
    def required_token_dim(self) -> int:
        """`token_dim`. Raises ConfigError where it is missing."""
        return self.required("token_dim")

    @property
    def table_shape(self) -> tuple[int, int]:
        """Rows and columns of the prompt's bare table, PEFT's `prompt_embeddings`: [V, D].

        Raises ConfigError where a size is missing or the table would be absurdly large.
        """
        return checked_table_shape(self.total_virtual_tokens, self.required_token_dim)

    def required(self, name: str) -> int:
        """The size `name`. Raises ConfigError where it is missing."""
        size: int | None = getattr(self, name)
        if size is None:
            raise ConfigError(
                f"{name} is missing: give it in the config, or take the base's sizes with "
                "config.completed(model.config)"
            )
        return size

    def completed(self, model_config: Any) -> Self:
        """A copy with the sizes left None taken from a transformers config, as PEFT takes them.

        Raises ConfigError where the base's config does not tell one.
        """
        base = model_config.get_text_config()
        sizes: dict[str, Any] = {
            "num_layers": self.num_layers or _size_of(base, *self._NUM_LAYERS),
            "token_dim": self.token_dim or _size_of(base, "hidden_size", "n_embd", "d_model"),
            "num_attention_heads": self.num_attention_heads or _size_of(base, *self._NUM_HEADS),
            "num_transformer_submodules": self._num_submodules,
        }
        if getattr(self, "encoder_hidden_size", self) is None:
            sizes["encoder_hidden_size"] = sizes["token_dim"]
        return replace(self, **sizes)

    @property
    def _num_submodules(self) -> int:
        is_seq2seq = self.task_type == TaskType.SEQ_2_SEQ_LM
        return self.num_transformer_submodules or (2 if is_seq2seq else 1)


@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """P-tuning (arXiv 2103.10385). `encoder_hidden_size` is the encoder's width (None: token_dim);
    `encoder_num_layers` and `encoder_dropout` are the LSTM's."""

    _PEFT_TYPE = PeftType.P_TUNING
    _ENUMS: ClassVar = {"encoder_reparameterization_type": PromptEncoderReparameterizationType}

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = (
        PromptEncoderReparameterizationType.MLP
    )
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.encoder_dropout <= 1:  # NaN too
            raise ConfigError(f"encoder_dropout is {self.encoder_dropout}; allowed is 0 to 1")


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning (arXiv 2101.00190). `init_weights="zero"` starts from zero keys and values;
    `prefix_projection` computes them from `token_dim` by a two-layer MLP."""

    _PEFT_TYPE = PeftType.PREFIX_TUNING
    _NUM_LAYERS: ClassVar = (
        "num_decoder_layers",
        "decoder_layers",
        *PromptLearningConfig._NUM_LAYERS,
    )
    _NUM_HEADS: ClassVar = ("decoder_attention_heads", *PromptLearningConfig._NUM_HEADS)

    init_weights: str | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights not in (None, "zero"):
            raise ConfigError(f"init_weights is {self.init_weights!r}; allowed are None and 'zero'")

    @property
    def table_shape(self) -> tuple[int, int]:
        """As above, [V, layers * 2 * D]: V keys and V values for every layer of one submodule."""
        columns = self.required("num_layers") * 2 * self.required_token_dim
        return checked_table_shape(self.required("num_virtual_tokens"), columns)

    def completed(self, model_config: Any) -> Self:
        """As above, but the sizes are those of the keys: with grouped-query attention, and where a
        head's size is not `token_dim / num_attention_heads` (T5, where PEFT gets it wrong). Of an
        encoder-decoder they are the decoder's.
        """
        config = super().completed(model_config)
        base = model_config.get_text_config()
        if base.to_dict().get("per_layer_config"):
            raise ConfigError("the keys of the base's layers differ in size; prefix tuning cannot")
        heads = getattr(base, "num_key_value_heads", None) or config.required("num_attention_heads")
        head_dim = getattr(base, "head_dim", None)
        head_dim = head_dim or config.required_token_dim // config.required("num_attention_heads")
        return replace(
            config,
            token_dim=head_dim * heads,
            num_attention_heads=heads,
            encoder_hidden_size=self.encoder_hidden_size or head_dim * heads,
        )


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning (arXiv 2104.08691): a bare table. TEXT needs a text and a tokenizer."""

    _PEFT_TYPE = PeftType.PROMPT_TUNING
    _ENUMS: ClassVar = {"prompt_tuning_init": PromptTuningInit}

    prompt_tuning_init: PromptTuningInit | MultitaskPromptTuningInit | str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        starts_from_text = self.prompt_tuning_init == PromptTuningInit.TEXT
        if starts_from_text and not self.tokenizer_name_or_path:
            raise ConfigError(
                "When prompt_tuning_init='TEXT', tokenizer_name_or_path can't be "
                f"{self.tokenizer_name_or_path}."
            )
        if starts_from_text and self.prompt_tuning_init_text is None:
            raise ConfigError(
                "When prompt_tuning_init='TEXT', prompt_tuning_init_text can't be None."
            )
        if self.tokenizer_kwargs and not starts_from_text:
            raise ConfigError("tokenizer_kwargs only valid when using prompt_tuning_init='TEXT'.")


@dataclass
class MultitaskPromptTuningConfig(PromptTuningConfig):
    """Multitask prompt tuning (arXiv 2303.02861): one shared table times a low-rank factor of each
    of `num_tasks` tasks. `prompt_tuning_init_state_dict_path` is a safetensors file."""

    _PEFT_TYPE = PeftType.MULTITASK_PROMPT_TUNING
    _ENUMS: ClassVar = {"prompt_tuning_init": MultitaskPromptTuningInit}

    prompt_tuning_init: MultitaskPromptTuningInit | str = MultitaskPromptTuningInit.RANDOM
    prompt_tuning_init_state_dict_path: str | None = None
    prompt_tuning_init_task: int | None = 0
    num_ranks: int = 1
    num_tasks: int = 1


CONFIG_CLASSES: dict[PeftType, type[PromptLearningConfig]] = {
    PeftType.P_TUNING: PromptEncoderConfig,
    PeftType.PREFIX_TUNING: PrefixTuningConfig,
    PeftType.PROMPT_TUNING: PromptTuningConfig,
    PeftType.MULTITASK_PROMPT_TUNING: MultitaskPromptTuningConfig,
}


def get_peft_config(config_dict: Mapping[str, Any]) -> PromptLearningConfig:
    """The config that a dict with a `peft_type` describes. Raises ConfigError."""
    return PromptLearningConfig._from_dict(config_dict, stacklevel=3)


def _config_class(peft_type: object, default: type[PeftConfig]) -> type[PeftConfig]:
    if peft_type is None and default._PEFT_TYPE:
        return default
    member = member_of(PeftType, peft_type)
    if member is None:
        raise ConfigError(
            f"the peft_type {reprlib.repr(peft_type)} is no prompt method; "
            f"known are {', '.join(PeftType)}"
        )
    return CONFIG_CLASSES[member]


def _size_of(model_config: Any, *names: str) -> int:
    for name in names:
        value = getattr(model_config, name, None)
        if isinstance(value, int):
            return value
    raise ConfigError(f"the base's config has none of {', '.join(names)}; give it in the config")
