"""What a PromptedModel must know of its frozen base, read once from its classes and signatures."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders.config import TaskType

#: The task of a transformers class, by how its name ends.
_TASKS = {
    "ForCausalLM": TaskType.CAUSAL_LM,
    "LMHeadModel": TaskType.CAUSAL_LM,
    "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM,
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForQuestionAnswering": TaskType.QUESTION_ANS,
}


@dataclass(frozen=True)
class BaseTraits:
    """`task_type` is None where the class names none (a bare model, a masked language model).
    `accepts` are the arguments of its forward; `first_position` is the position id of a row's
    first token, which is not 0 for RoBERTa; `classifies_last` says that a row's class is read at
    the last slot, as decoders do."""

    task_type: TaskType | None
    is_encoder_decoder: bool
    is_causal: bool
    accepts: frozenset[str]
    first_position: int
    classifies_last: bool


def read_traits(base: Any) -> BaseTraits:
    """The traits of a transformers model."""
    is_encoder_decoder = bool(getattr(base.config, "is_encoder_decoder", False))
    modules = list(base.modules())
    return BaseTraits(
        task_type=_task_type(base, is_encoder_decoder),
        is_encoder_decoder=is_encoder_decoder,
        is_causal=not is_encoder_decoder and _is_causal(modules),
        accepts=_accepted(base),
        first_position=max((_first_position(module) for module in modules), default=0),
        classifies_last=hasattr(base, "score"),
    )


def embed(stack: Any, token_ids: Tensor) -> Tensor:
    """Embeddings [B, T, D], as a stack of the base makes them (scaled where its table scales),
    without gradient. Only `get_input_embeddings()` is called, so the base may be sharded."""
    with torch.no_grad():
        embeds: Tensor = stack.get_input_embeddings()(token_ids)
    return embeds.detach()


def source_stack(base: Any, traits: BaseTraits) -> Any:
    """What embeds `input_ids`: an encoder-decoder's stacks may each have a table of their own."""
    return base.get_encoder() if traits.is_encoder_decoder else base


def _task_type(base: Any, is_encoder_decoder: bool) -> TaskType | None:
    name = type(base).__name__
    found = next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)
    if found is TaskType.SEQ_2_SEQ_LM and not is_encoder_decoder:
        return TaskType.CAUSAL_LM
    return found


def _accepted(base: Any) -> frozenset[str]:
    """Names of the forward's arguments, and of the backbone's where the forward hands on others."""
    parameters = inspect.signature(base.forward).parameters
    names = set(parameters)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        names |= set(inspect.signature(base.base_model.forward).parameters)
    return frozenset(names)


def _is_causal(modules: list[nn.Module]) -> bool:
    """Whether any attention says so, or none says anything (older decoders)."""
    said = [bool(vars(module)["is_causal"]) for module in modules if "is_causal" in vars(module)]
    return any(said) or not said


def _first_position(module: nn.Module) -> int:
    """RoBERTa and its kin count positions from after the padding's."""
    if not hasattr(module, "create_position_ids_from_inputs_embeds"):
        return 0
    padding_idx: int = module.padding_idx  # type: ignore[assignment]
    return padding_idx + 1
