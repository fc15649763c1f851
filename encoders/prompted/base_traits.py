"""What a PromptedModel must know of its frozen base, read once from its classes and signatures."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders.config import TaskType
from encoders.errors import PromptError
from encoders.modules.eval_mode import eval_mode

EXACT_TOLERANCE = 2e-3  # of the largest output: equal runs differ by 1e-6, a wrong scale by 1
#: Names of tables of positions.
_POSITIONS = ("position_embeddings", "embed_positions", "wpe")
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
    first token, which is not 0 for RoBERTa; `max_positions` is the length of its table of
    positions, if it has one; `classifies_last` says that a row's class is read at the last slot,
    as decoders do."""

    task_type: TaskType | None
    is_encoder_decoder: bool
    is_causal: bool
    accepts: frozenset[str]
    first_position: int
    max_positions: int | None
    classifies_last: bool


def read_traits(base: Any) -> BaseTraits:
    """The traits of a transformers model."""
    is_encoder_decoder = bool(getattr(base.config, "is_encoder_decoder", False))
    modules = list(base.modules())
    first_position = max((_first_position(module) for module in modules), default=0)
    return BaseTraits(
        task_type=_task_type(base, is_encoder_decoder),
        is_encoder_decoder=is_encoder_decoder,
        is_causal=not is_encoder_decoder and _is_causal(modules),
        accepts=_accepted(base),
        first_position=first_position,
        max_positions=_max_positions(base, first_position),
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


def check_embeddings(base: Any, traits: BaseTraits) -> None:
    """Raise PromptError unless the base gives the same for token ids as for their embeddings.

    Some scale the embeddings of ids alone (Pegasus, Marian): with virtual tokens before it, a text
    would silently be another one. Runs the base twice on two tokens.
    """
    if base.device.type == "meta":
        return
    pad = getattr(base.config, "pad_token_id", None)
    ids = torch.tensor([[token for token in range(5) if token != pad][:2]], device=base.device)
    with eval_mode(base):
        by_ids: dict[str, Any] = {"input_ids": ids}
        by_embeds: dict[str, Any] = {"inputs_embeds": embed(source_stack(base, traits), ids)}
        if traits.is_encoder_decoder:
            by_ids["decoder_input_ids"] = ids
            by_embeds["decoder_inputs_embeds"] = embed(base.get_decoder(), ids)
        try:
            expected, found = (base(**each)[0].float() for each in (by_ids, by_embeds))
        except NotImplementedError as error:
            raise PromptError(f"{type(base).__name__} cannot run with prompts: {error}") from error
    if not torch.allclose(found, expected, atol=EXACT_TOLERANCE * float(expected.abs().max())):
        raise PromptError(
            f"{type(base).__name__} cannot run with prompts: it gives other results for the "
            "embeddings of a text than for its token ids (it scales only the latter)"
        )


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


def _max_positions(base: Any, first_position: int) -> int | None:
    lengths = [
        module.num_embeddings - int(getattr(module, "offset", first_position))
        for name, module in base.named_modules()
        if name.endswith(_POSITIONS) and isinstance(module, nn.Embedding)
    ]
    return min(lengths, default=None)
