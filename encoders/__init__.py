"""Prompt encoders for frozen base models: pure PyTorch, with PEFT's names.

Needs torch, transformers and safetensors, and nothing else. Names load on first use, so that
`encoders.template` can be used where torch is not wanted.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Adapter": "encoders.peft_format",
    "AnchoredPrompt": "encoders.anchored_prompt",
    "AutoPeftModelForCausalLM": "encoders.auto_peft_model",
    "AutoPeftModelForFeatureExtraction": "encoders.auto_peft_model",
    "AutoPeftModelForQuestionAnswering": "encoders.auto_peft_model",
    "AutoPeftModelForSeq2SeqLM": "encoders.auto_peft_model",
    "AutoPeftModelForSequenceClassification": "encoders.auto_peft_model",
    "AutoPeftModelForTokenClassification": "encoders.auto_peft_model",
    "CacheBudget": "encoders.context_cache",
    "ChatMarkup": "encoders.chat_markup",
    "ConfigError": "encoders.errors",
    "ContextCache": "encoders.context_cache",
    "DeepPromptEncoder": "encoders.deep_prompt_encoder",
    "DeepPromptEncoderConfig": "encoders.deep_prompt_encoder",
    "EncodedRow": "encoders.row_encoder",
    "EncoderError": "encoders.errors",
    "KeyValues": "encoders.key_values",
    "MultitaskPromptEmbedding": "encoders.multitask_prompt_embedding",
    "MultitaskPromptTuningConfig": "encoders.config",
    "MultitaskPromptTuningInit": "encoders.config",
    "PackedModel": "encoders.packed_model",
    "PackedRow": "encoders.packing",
    "PeftConfig": "encoders.config",
    "PeftModel": "encoders.peft_api",
    "PeftModelForCausalLM": "encoders.peft_api",
    "PeftModelForFeatureExtraction": "encoders.peft_api",
    "PeftModelForQuestionAnswering": "encoders.peft_api",
    "PeftModelForSeq2SeqLM": "encoders.peft_api",
    "PeftModelForSequenceClassification": "encoders.peft_api",
    "PeftModelForTokenClassification": "encoders.peft_api",
    "PeftType": "encoders.config",
    "PrefixEncoder": "encoders.prefix_encoder",
    "PrefixTuningConfig": "encoders.config",
    "PromptEmbedding": "encoders.prompt_embedding",
    "PromptEmbeds": "encoders.prompt_embeds",
    "PromptEncoder": "encoders.prompt_encoder",
    "PromptEncoderConfig": "encoders.config",
    "PromptEncoderReparameterizationType": "encoders.config",
    "PromptError": "encoders.errors",
    "PromptLearningConfig": "encoders.config",
    "PromptTable": "encoders.prompt_table",
    "PromptTuningConfig": "encoders.config",
    "PromptTuningInit": "encoders.config",
    "PromptedModel": "encoders.prompted_model",
    "RowEncoder": "encoders.row_encoder",
    "TaskConditionedEncoder": "encoders.task_conditioned_encoder",
    "TaskConditionedEncoderConfig": "encoders.task_conditioned_encoder",
    "TaskType": "encoders.config",
    "Template": "encoders.template",
    "TemplateError": "encoders.errors",
    "TextTokenizer": "encoders.tokenization",
    "TrainingState": "encoders.training_state",
    "WeightsError": "encoders.errors",
    "collate": "encoders.collation",
    "embed_rows": "encoders.collation",
    "embedding_scale": "encoders.prompt_init",
    "export_key_values": "encoders.key_values",
    "export_prompt_embeds": "encoders.prompt_embeds",
    "export_prompt_table": "encoders.prompt_table",
    "fit_table": "encoders.prompt_init",
    "get_peft_config": "encoders.config",
    "get_peft_model": "encoders.peft_api",
    "get_prompt_encoder": "encoders.prompt_factory",
    "load_adapter": "encoders.peft_format",
    "load_key_values": "encoders.key_values",
    "load_prompt": "encoders.prompt_loader",
    "load_prompt_embeds": "encoders.prompt_embeds",
    "load_prompt_table": "encoders.prompt_table",
    "load_training_state": "encoders.training_state",
    "make_prompt_embeds": "encoders.prompt_embeds",
    "mean_of_prompts": "encoders.prompt_init",
    "pack": "encoders.packing",
    "sampled_tokens": "encoders.prompt_init",
    "save_adapter": "encoders.peft_format",
    "save_training_state": "encoders.training_state",
    "token_table": "encoders.prompt_init",
    "write_adapter": "encoders.peft_format",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
