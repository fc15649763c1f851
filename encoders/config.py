"""Configs of the prompt methods, with PEFT's class names, field names, order, defaults and values.

`adapter_config.json` is read and written as PEFT 0.21.2 does. Unlike PEFT: a string is taken for an
enum everywhere, numbers are checked at construction, and no file is looked for on a hub. A config
never holds what PEFT's has no field for; Tutti's own encoders have configs of their own.
Sources: PEFT's `config.py` and `tuners/*/config.py`.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self

from encoders.errors import ConfigError

CONFIG_NAME = "adapter_config.json"
PEFT_VERSION = "0.21.2"  # the version whose file format is written
MAX_CONFIG_BYTES = 1 << 20
MAX_SIZE = 1 << 24  # of any one size: tokens, dimensions, layers, tasks, ranks


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
    _SIZES: ClassVar[tuple[str, ...]] = ()
    _PEFT_TYPE: ClassVar[PeftType | None] = None

    task_type: TaskType | str | None = None
    peft_type: PeftType | str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    def __post_init__(self) -> None:
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise ConfigError(
                f"Invalid task type: '{self.task_type}'. Must be one of the following task types: "
                f"{', '.join(TaskType)}."
            )
        self.task_type = TaskType(self.task_type) if self.task_type else None
        self.peft_version = self.peft_version or PEFT_VERSION
        self.peft_type = self._PEFT_TYPE or self.peft_type
        for name, kind in self._ENUMS.items():
            value = getattr(self, name)
            if isinstance(value, str) and value.upper() in kind.__members__:
                setattr(self, name, kind(value.upper()))
        for name in self._SIZES:
            _check_size(name, getattr(self, name))

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
        kind = _config_class(values.get("peft_type"), cls)
        if not issubclass(kind, cls):
            raise ConfigError(f"this is a {kind.__name__}, not a {cls.__name__}")
        known = {field.name for field in fields(kind)}
        unknown = sorted(set(values) - known)
        if unknown:
            warnings.warn(
                f"Unexpected keyword arguments {unknown} for class {kind.__name__}, these are "
                "ignored: the file was written by a newer or another library",
                stacklevel=2,
            )
        try:
            return kind(**{name: value for name, value in values.items() if name in known})
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"{kind.__name__}: {error}") from error

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
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: more than {MAX_CONFIG_BYTES} bytes")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON: {error}") from error
        if not isinstance(values, dict) or "peft_type" not in values:
            raise ConfigError(f"{path}: not an adapter's config: it names no peft_type")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


@dataclass
class PromptLearningConfig(PeftConfig):
    """What the prompt methods share. Sizes left None are the base's (see `completed`).

    `token_dim` is the base's embedding size (prefix tuning: the size of one layer's keys).
    `num_transformer_submodules` is 2 where encoder and decoder each get `num_virtual_tokens`.
    `modules_to_save` names the base's heads that are trained and saved beside the prompt.
    """

    _SIZES: ClassVar[tuple[str, ...]] = (
        "num_virtual_tokens",
        "token_dim",
        "num_transformer_submodules",
        "num_attention_heads",
        "num_layers",
    )

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    @property
    def total_virtual_tokens(self) -> int:
        """Rows of the prompt's table. Raises ConfigError where `num_virtual_tokens` is missing."""
        if self.num_virtual_tokens is None:
            raise ConfigError("num_virtual_tokens is missing: give the number of virtual tokens")
        return self.num_virtual_tokens * (self.num_transformer_submodules or 1)

    @property
    def required_token_dim(self) -> int:
        """`token_dim`. Raises ConfigError where it is missing."""
        if self.token_dim is None:
            raise ConfigError("token_dim is missing: give the base's embedding size")
        return self.token_dim

    def completed(self, model_config: Any) -> Self:
        """A copy with the sizes left None taken from a transformers config, as PEFT takes them.

        Raises ConfigError where the base's config does not tell one.
        """
        text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else None
        base = text or model_config
        sizes: dict[str, Any] = {
            "num_layers": self.num_layers or _size_of(base, "num_hidden_layers", "n_layer"),
            "token_dim": self.token_dim or _size_of(base, "hidden_size", "n_embd", "d_model"),
            "num_attention_heads": self.num_attention_heads
            or _size_of(base, "num_attention_heads", "n_head", "encoder_attention_heads"),
            "num_transformer_submodules": self.num_transformer_submodules
            or (2 if self.task_type == TaskType.SEQ_2_SEQ_LM else 1),
        }
        if getattr(self, "encoder_hidden_size", self) is None:
            sizes["encoder_hidden_size"] = sizes["token_dim"]
        return replace(self, **sizes)


@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """P-tuning (arXiv 2103.10385). `encoder_hidden_size` is the encoder's width (None: token_dim);
    `encoder_num_layers` and `encoder_dropout` are the LSTM's."""

    _PEFT_TYPE = PeftType.P_TUNING
    _ENUMS: ClassVar = {"encoder_reparameterization_type": PromptEncoderReparameterizationType}
    _SIZES: ClassVar[tuple[str, ...]] = (
        *PromptLearningConfig._SIZES,
        "encoder_hidden_size",
        "encoder_num_layers",
    )

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = (
        PromptEncoderReparameterizationType.MLP
    )
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning (arXiv 2101.00190). `init_weights="zero"` starts from zero keys and values;
    `prefix_projection` computes them from `token_dim` by a two-layer MLP."""

    _PEFT_TYPE = PeftType.PREFIX_TUNING
    _SIZES: ClassVar[tuple[str, ...]] = (*PromptLearningConfig._SIZES, "encoder_hidden_size")

    init_weights: str | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights not in (None, "zero"):
            raise ConfigError(f"init_weights is {self.init_weights!r}; allowed are None and 'zero'")

    def completed(self, model_config: Any) -> Self:
        """As above; with grouped-query attention the sizes are those of the keys."""
        config = super().completed(model_config)
        text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else None
        groups = getattr(text or model_config, "num_key_value_heads", None)
        if groups is None or config.num_attention_heads is None:
            return config
        head_dim = getattr(text or model_config, "head_dim", None)
        head_dim = head_dim or config.required_token_dim // config.num_attention_heads
        width = self.encoder_hidden_size or head_dim * groups
        sizes = {"token_dim": head_dim * groups, "num_attention_heads": groups}
        return replace(config, **sizes, encoder_hidden_size=width)


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
    _SIZES: ClassVar[tuple[str, ...]] = (*PromptLearningConfig._SIZES, "num_ranks", "num_tasks")

    prompt_tuning_init: MultitaskPromptTuningInit | str = MultitaskPromptTuningInit.RANDOM
    prompt_tuning_init_state_dict_path: str | None = None
    prompt_tuning_init_task: int | None = 0
    num_ranks: int | None = 1
    num_tasks: int | None = 1


CONFIG_CLASSES: dict[PeftType, type[PromptLearningConfig]] = {
    PeftType.P_TUNING: PromptEncoderConfig,
    PeftType.PREFIX_TUNING: PrefixTuningConfig,
    PeftType.PROMPT_TUNING: PromptTuningConfig,
    PeftType.MULTITASK_PROMPT_TUNING: MultitaskPromptTuningConfig,
}


def get_peft_config(config_dict: Mapping[str, Any]) -> PromptLearningConfig:
    """The config that a dict with a `peft_type` describes. Raises ConfigError."""
    return PromptLearningConfig.from_dict(config_dict)


def _config_class(peft_type: object, default: type[PeftConfig]) -> type[PeftConfig]:
    if peft_type is None:
        return default
    if peft_type not in list(PeftType):
        raise ConfigError(
            f"the peft_type {peft_type!r} is no prompt method; known are {', '.join(PeftType)}"
        )
    return CONFIG_CLASSES[PeftType(str(peft_type))]


def _check_size(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1 to {MAX_SIZE}")


def _size_of(model_config: Any, *names: str) -> int:
    for name in names:
        value = getattr(model_config, name, None)
        if isinstance(value, int):
            return value
    raise ConfigError(f"the base's config has none of {', '.join(names)}; give it in the config")
