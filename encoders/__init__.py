"""Prompt encoders for frozen base models: pure PyTorch, with PEFT's names.

Needs torch, transformers and safetensors, and nothing else. Names load on first use, so that
`encoders.text.template` can be used where torch is not wanted.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Adapter": "encoders.formats.peft_format",
    "AnchoredPrompt": "encoders.modules.anchored_prompt",
    "AutoPeftModelForCausalLM": "encoders.prompted.auto_peft_model",
    "AutoPeftModelForFeatureExtraction": "encoders.prompted.auto_peft_model",
    "AutoPeftModelForQuestionAnswering": "encoders.prompted.auto_peft_model",
    "AutoPeftModelForSeq2SeqLM": "encoders.prompted.auto_peft_model",
    "AutoPeftModelForSequenceClassification": "encoders.prompted.auto_peft_model",
    "AutoPeftModelForTokenClassification": "encoders.prompted.auto_peft_model",
    "CacheBudget": "encoders.packed.context_cache",
    "ChatMarkup": "encoders.text.chat_markup",
    "ConfigError": "encoders.errors",
    "ContextCache": "encoders.packed.context_cache",
    "DeepPromptEncoder": "encoders.modules.deep_prompt_encoder",
    "DeepPromptEncoderConfig": "encoders.modules.deep_prompt_encoder",
    "EncodedRow": "encoders.text.row_encoder",
    "EncoderError": "encoders.errors",
    "KeyValues": "encoders.formats.key_values",
    "MultitaskPromptEmbedding": "encoders.modules.multitask_prompt_embedding",
    "MultitaskPromptTuningConfig": "encoders.config",
    "MultitaskPromptTuningInit": "encoders.config",
    "PackedModel": "encoders.packed.packed_model",
    "PackedRow": "encoders.packed.packing",
    "PeftConfig": "encoders.config",
    "PeftModel": "encoders.prompted.peft_api",
    "PeftModelForCausalLM": "encoders.prompted.peft_api",
    "PeftModelForFeatureExtraction": "encoders.prompted.peft_api",
    "PeftModelForQuestionAnswering": "encoders.prompted.peft_api",
    "PeftModelForSeq2SeqLM": "encoders.prompted.peft_api",
    "PeftModelForSequenceClassification": "encoders.prompted.peft_api",
    "PeftModelForTokenClassification": "encoders.prompted.peft_api",
    "PeftType": "encoders.config",
    "PrefixEncoder": "encoders.modules.prefix_encoder",
    "PrefixTuningConfig": "encoders.config",
    "PromptEmbedding": "encoders.modules.prompt_embedding",
    "PromptEmbeds": "encoders.formats.prompt_embeds",
    "PromptEncoder": "encoders.modules.prompt_encoder",
    "PromptEncoderConfig": "encoders.config",
    "PromptEncoderReparameterizationType": "encoders.config",
    "PromptError": "encoders.errors",
    "PromptLearningConfig": "encoders.config",
    "PromptTable": "encoders.formats.prompt_table",
    "PromptTuningConfig": "encoders.config",
    "PromptTuningInit": "encoders.config",
    "PromptedModel": "encoders.prompted.prompted_model",
    "RowEncoder": "encoders.text.row_encoder",
    "TaskConditionedEncoder": "encoders.modules.task_conditioned_encoder",
    "TaskConditionedEncoderConfig": "encoders.modules.task_conditioned_encoder",
    "TaskType": "encoders.config",
    "Template": "encoders.text.template",
    "TemplateError": "encoders.errors",
    "TextTokenizer": "encoders.text.tokenization",
    "TrainingState": "encoders.formats.training_state",
    "WeightsError": "encoders.errors",
    "collate": "encoders.text.collation",
    "embed_rows": "encoders.text.collation",
    "embedding_scale": "encoders.modules.prompt_init",
    "export_key_values": "encoders.formats.key_values",
    "export_prompt_embeds": "encoders.formats.prompt_embeds",
    "export_prompt_table": "encoders.formats.prompt_table",
    "fit_table": "encoders.modules.prompt_init",
    "get_peft_config": "encoders.config",
    "get_peft_model": "encoders.prompted.peft_api",
    "get_prompt_encoder": "encoders.modules.prompt_factory",
    "load_adapter": "encoders.formats.peft_format",
    "load_key_values": "encoders.formats.key_values",
    "load_prompt": "encoders.formats.prompt_loader",
    "load_prompt_embeds": "encoders.formats.prompt_embeds",
    "load_prompt_table": "encoders.formats.prompt_table",
    "load_training_state": "encoders.formats.training_state",
    "make_prompt_embeds": "encoders.formats.prompt_embeds",
    "mean_of_prompts": "encoders.modules.prompt_init",
    "pack": "encoders.packed.packing",
    "sampled_tokens": "encoders.modules.prompt_init",
    "save_adapter": "encoders.formats.peft_format",
    "save_training_state": "encoders.formats.training_state",
    "token_table": "encoders.modules.prompt_init",
    "write_adapter": "encoders.formats.peft_format",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
