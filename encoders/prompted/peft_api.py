"""PEFT's own names over PromptedModel: a script written for PEFT's prompt methods runs with
`from peft import` changed to `from encoders import`.

An adapter is a prompt of PEFT's kinds; its folder is PEFT's. Unlike PEFT, several adapters serve
one batch (`adapter_names`), a loaded adapter can be trained on, and no hub is asked for anything.
Source: PEFT's `peft_model.py` and `mapping_func.py`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from encoders.config import PrefixTuningConfig, PromptLearningConfig, TaskType
from encoders.errors import PromptError, WeightsError
from encoders.formats.peft_format import Adapter, load_adapter, save_adapter
from encoders.modules.anchored_prompt import AnchoredPrompt
from encoders.modules.prompt_factory import get_prompt_encoder
from encoders.modules.prompt_init import embedding_scale
from encoders.prompted.attached_prompt import AttachedPrompt
from encoders.prompted.prompted_model import PromptedModel

DEFAULT = "default"
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class PeftModel(PromptedModel):
    """A PromptedModel whose prompts are PEFT's adapters; rows that name none use the active one.

    Raises PromptError and ConfigError (both ValueErrors) where PEFT raises ValueError.
    """

    def __init__(
        self, model: Any, peft_config: PromptLearningConfig, adapter_name: str = DEFAULT
    ) -> None:
        super().__init__(model)
        self.peft_config: dict[str, PromptLearningConfig] = {}
        self.active_adapter = adapter_name
        self._is_disabled = False
        self.add_adapter(adapter_name, peft_config)

    # Adapters

    def add_adapter(self, adapter_name: str, peft_config: PromptLearningConfig) -> None:
        """Attach a new, untrained adapter; the active one stays active."""
        name_or_path = getattr(self.base.config, "name_or_path", None) or None
        config = replace(
            peft_config,
            base_model_name_or_path=peft_config.base_model_name_or_path or name_or_path,
        )
        self._attach(adapter_name, config, None, peft_layout=False)

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        subfolder: str | None = None,
    ) -> None:
        """Attach a saved adapter. With `is_trainable` training starts at what was saved: a table
        is trained itself, a P-tuning encoder, of which a folder holds the table alone, as an
        AnchoredPrompt around it. Raises ConfigError and WeightsError."""
        adapter = load_adapter(Path(model_id) / (subfolder or ""))
        config = replace(adapter.config, inference_mode=not is_trainable)
        module = adapter.module()
        if is_trainable:
            config, module = self._trainable(config, adapter, module)
        attached = self._attach(adapter_name, config, module, adapter.is_pefts)
        try:
            attached.heads.load_state_dict(dict(adapter.heads))
        except RuntimeError as error:
            self.delete_adapter(adapter_name)
            raise WeightsError(f"{model_id}: its heads do not fit the base's: {error}") from error
        attached.heads.requires_grad_(is_trainable)

    def set_adapter(self, adapter_name: str) -> None:
        """Make an attached adapter the one that rows use by default."""
        self.active_adapter = self.prompts[adapter_name].name

    def delete_adapter(self, adapter_name: str) -> None:
        """Detach an adapter; where it was the active one, the first of the others is next."""
        self.remove_prompt(adapter_name)
        self.peft_config.pop(adapter_name, None)
        if self.active_adapter == adapter_name and len(self.prompts):
            self.active_adapter = next(iter(self.prompts))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The bare base, for as long as the context lasts."""
        before, self._is_disabled = self._is_disabled, True
        try:
            yield
        finally:
            self._is_disabled = before

    def _attach(
        self, name: str, config: PromptLearningConfig, module: Any, peft_layout: bool
    ) -> AttachedPrompt:
        attached = self.add_prompt(name, config, module, peft_layout=peft_layout)
        self.peft_config[name] = attached.config
        return attached

    def _trainable(
        self, config: PromptLearningConfig, adapter: Adapter, module: Any
    ) -> tuple[PromptLearningConfig, Any]:
        if config.peft_type != "P_TUNING":
            if isinstance(config, PrefixTuningConfig):
                config = replace(config, prefix_projection=False)
            return config, module.requires_grad_(True).train()
        embeddings = self.base.get_input_embeddings()
        scale = embedding_scale(embeddings, range(embeddings.num_embeddings))
        encoder = get_prompt_encoder(config)
        return config, AnchoredPrompt(adapter.tensors["prompt_embeddings"], encoder, scale)

    # Files

    def save_pretrained(
        self, save_directory: str | Path, selected_adapters: Sequence[str] | None = None
    ) -> None:
        """Write adapter folders that PEFT loads: "default" into `save_directory` itself, others
        into folders of their names below it. Raises PromptError for a name that is no folder's."""
        names = list(self.prompts) if selected_adapters is None else list(selected_adapters)
        folders = {name: _folder(Path(save_directory), name) for name in names}
        for name, folder in folders.items():
            attached = self.prompts[name]
            heads = attached.heads.state_dict()
            save_adapter(
                folder, self.peft_config[name], attached.encoder, heads, attached.peft_layout
            )

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        model_id: str | Path,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        subfolder: str | None = None,
    ) -> Self:
        """A model with a saved adapter (see `load_adapter`), of the class of its task."""
        config = PromptLearningConfig.from_pretrained(model_id, subfolder)
        kind = _model_class(config, cls)
        loaded = kind.__new__(kind)
        PromptedModel.__init__(loaded, model)
        loaded.peft_config, loaded._is_disabled = {}, False
        loaded.active_adapter = adapter_name
        loaded.load_adapter(model_id, adapter_name, is_trainable, subfolder)
        return loaded  # type: ignore[return-value]

    # Running

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """PromptedModel's forward. `adapter_names` names one adapter for each row."""
        if self._is_disabled:
            kwargs.pop("task_ids", None)
            return self.base(input_ids, attention_mask, labels=labels, **kwargs)
        names = self.active_adapter if adapter_names is None else adapter_names
        return super().forward(input_ids, attention_mask, labels, names, **kwargs)

    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """PromptedModel's generate. `adapter_names` names one adapter for each row."""
        if self._is_disabled:
            kwargs.pop("task_ids", None)
            return self.base.generate(input_ids, attention_mask=attention_mask, **kwargs)
        names = self.active_adapter if adapter_names is None else adapter_names
        return super().generate(input_ids, attention_mask, names, **kwargs)

    # What scripts ask of a PEFT model

    def get_prompt(self, batch_size: int, task_ids: Tensor | None = None) -> Tensor:
        """The active adapter's virtual tokens [batch_size, V, D] (prefix: [.., V, L, 2, G, d])."""
        prompt = self.prompts[self.active_adapter]
        tasks = [None] * batch_size if task_ids is None else task_ids.tolist()
        return torch.stack([prompt.table(prompt.checked_task_id(task)) for task in tasks])

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Parameters of the active adapter and its heads that train, and all with the base's."""
        adapter = list(self.prompts[self.active_adapter].parameters())
        trainable = sum(each.numel() for each in adapter if each.requires_grad)
        total = sum(each.numel() for each in adapter)
        base = sum(getattr(each, "ds_numel", each.numel()) for each in self.base.parameters())
        return trainable, total + base

    def print_trainable_parameters(self) -> None:
        """Print both numbers and their ratio, as PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        share = f"{100 * trainable / total:.4f}"
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share}")

    def get_base_model(self) -> Any:
        return self.base

    @property
    def base_model(self) -> Any:
        return self.base

    @property
    def active_peft_config(self) -> PromptLearningConfig:
        return self.peft_config[self.active_adapter]

    @property
    def active_adapters(self) -> list[str]:
        return [self.active_adapter]

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def generation_config(self) -> Any:
        return self.base.generation_config

    @property
    def device(self) -> torch.device:
        return torch.device(self.base.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.base.dtype
        return dtype


class PeftModelForSequenceClassification(PeftModel):
    """PEFT's name of a PeftModel for SEQ_CLS."""


class PeftModelForSeq2SeqLM(PeftModel):
    """PEFT's name of a PeftModel for SEQ_2_SEQ_LM."""


class PeftModelForCausalLM(PeftModel):
    """PEFT's name of a PeftModel for CAUSAL_LM."""


class PeftModelForTokenClassification(PeftModel):
    """PEFT's name of a PeftModel for TOKEN_CLS."""


class PeftModelForQuestionAnswering(PeftModel):
    """PEFT's name of a PeftModel for QUESTION_ANS."""


class PeftModelForFeatureExtraction(PeftModel):
    """PEFT's name of a PeftModel for FEATURE_EXTRACTION."""


MODEL_CLASSES: dict[TaskType, type[PeftModel]] = {
    TaskType.SEQ_CLS: PeftModelForSequenceClassification,
    TaskType.SEQ_2_SEQ_LM: PeftModelForSeq2SeqLM,
    TaskType.CAUSAL_LM: PeftModelForCausalLM,
    TaskType.TOKEN_CLS: PeftModelForTokenClassification,
    TaskType.QUESTION_ANS: PeftModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: PeftModelForFeatureExtraction,
}


def get_peft_model(
    model: Any, peft_config: PromptLearningConfig, adapter_name: str = DEFAULT
) -> PeftModel:
    """A frozen base with one new adapter, of the class of its task. Raises ConfigError."""
    return _model_class(peft_config, PeftModel)(model, peft_config, adapter_name)


def _model_class(config: PromptLearningConfig, asked: type[PeftModel]) -> type[PeftModel]:
    kind = MODEL_CLASSES.get(TaskType(config.task_type)) if config.task_type else None
    return kind if kind is not None and issubclass(kind, asked) else asked


def _folder(save_directory: Path, adapter_name: str) -> Path:
    """Where an adapter is saved; a name is a folder's only where it cannot be anything else."""
    if adapter_name == DEFAULT:
        return save_directory
    if not _FOLDER_NAME.fullmatch(adapter_name) or ".." in adapter_name:
        raise PromptError(
            f"the adapter's name {adapter_name!r} cannot be a folder's; save it alone by "
            "encoders.save_adapter(folder, ...)"
        )
    return save_directory / adapter_name
