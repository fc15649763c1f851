"""PEFT's AutoPeftModel classes: an adapter folder and, beside it, the base that its config names.

The base is a local folder of safetensors; nothing is fetched from a hub. Source: PEFT's `auto.py`.
"""

from pathlib import Path
from typing import Any, ClassVar

from encoders.config import PeftConfig
from encoders.errors import ConfigError
from encoders.prompted.peft_api import DEFAULT, PeftModel


class _AutoPeftModel:
    """Loads an adapter folder and, beside it, the base its config names: a local folder."""

    _BASE_CLASS: ClassVar[str] = "AutoModel"

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        **base_arguments: Any,
    ) -> PeftModel:
        """The adapter on its base, which `base_arguments` load. Raises ConfigError."""
        import transformers

        config = PeftConfig.from_pretrained(model_id)
        folder = config.base_model_name_or_path
        if not folder or not Path(folder).is_dir():
            raise ConfigError(
                f"{model_id}: its base {folder!r} is no local folder; load the base yourself and "
                "call PeftModel.from_pretrained(base, folder)"
            )
        base_class = getattr(transformers, cls._BASE_CLASS)
        options = {"local_files_only": True, "use_safetensors": True, **base_arguments}
        base = base_class.from_pretrained(folder, **options)
        return PeftModel.from_pretrained(base, model_id, adapter_name, is_trainable)


class AutoPeftModelForCausalLM(_AutoPeftModel):
    """An adapter for CAUSAL_LM with its base."""

    _BASE_CLASS = "AutoModelForCausalLM"


class AutoPeftModelForSeq2SeqLM(_AutoPeftModel):
    """An adapter for SEQ_2_SEQ_LM with its base."""

    _BASE_CLASS = "AutoModelForSeq2SeqLM"


class AutoPeftModelForSequenceClassification(_AutoPeftModel):
    """An adapter for SEQ_CLS with its base."""

    _BASE_CLASS = "AutoModelForSequenceClassification"


class AutoPeftModelForTokenClassification(_AutoPeftModel):
    """An adapter for TOKEN_CLS with its base."""

    _BASE_CLASS = "AutoModelForTokenClassification"


class AutoPeftModelForQuestionAnswering(_AutoPeftModel):
    """An adapter for QUESTION_ANS with its base."""

    _BASE_CLASS = "AutoModelForQuestionAnswering"


class AutoPeftModelForFeatureExtraction(_AutoPeftModel):
    """An adapter for FEATURE_EXTRACTION with its base."""
