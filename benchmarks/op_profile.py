"""Where the seconds of a packed step go, by what the operations are for.

Forward operations count for the innermost module (or span) they ran in; a backward operation for
the forward one whose gradient it computes (the profiler's sequence numbers tell which).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AttentionInterface

from benchmarks.tutti_loop import PASSES
from encoders.packed.packed_attention import PACKED, packed_attention
from encoders.packed.packed_model import PackedModel

MATMUL, HEAD, ATTENTION, NORM, ROTARY, ELEMENTWISE, PACKING, OPTIMIZER, PYTHON = GROUPS = (
    "matrix products of the layers",
    "LM head",
    "attention",
    "norms",
    "rotary and the layout of heads",
    "activation functions, residuals, embedding",
    "packing and loss",
    "encoders and optimizer",
    "Python between operations",
)
_SPAN = "group: "
_BACKWARD = "autograd::engine::evaluate_function"


def profile_groups(model: PackedModel, work: Callable[[], object]) -> dict[str, float]:
    """Seconds of `work` (a TuttiLoop's step) by group; they sum to its time under the profiler,
    which is longer than without."""
    with _spans(model), profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        work()
        wall_s = time.perf_counter() - started
    return _by_group(list(profiler.events() or ()), wall_s)


def _by_group(events: list[FunctionEvent], wall_s: float) -> dict[str, float]:
    forward = {
        event.sequence_nr: event
        for event in sorted(events, key=lambda each: each.time_range.start)
        if event.sequence_nr >= 0 and not _backward_root(event)
    }
    groups = dict.fromkeys(GROUPS, 0.0)
    for event in events:
        if not event.name.startswith(_SPAN) and event.name != PASSES:
            groups[_group(event, forward)] += event.self_cpu_time_total / 1e6
    groups[PYTHON] = max(0.0, wall_s - sum(groups.values()))
    return groups


def _group(event: FunctionEvent, forward: dict[int, FunctionEvent]) -> str:
    root = _backward_root(event)
    if root is not None:
        made_by = forward.get(root.sequence_nr)
        return PACKING if made_by is None else _span_of(made_by)
    return _span_of(event)


def _span_of(event: FunctionEvent) -> str:
    for each in _ancestors(event):
        if each.name.startswith(_SPAN):
            return each.name.removeprefix(_SPAN)
        if each.name == PASSES:
            return PACKING
    return OPTIMIZER


def _backward_root(event: FunctionEvent) -> FunctionEvent | None:
    return next((each for each in _ancestors(event) if each.name.startswith(_BACKWARD)), None)


def _ancestors(event: FunctionEvent | None) -> Iterator[FunctionEvent]:
    while event is not None:
        yield event
        event = event.cpu_parent


@contextmanager
def _spans(packed: PackedModel) -> Iterator[None]:
    """Marks what runs inside each kind of module, and inside the packed attention."""
    model = packed.model
    head = model.get_output_embeddings()
    with ExitStack() as stack:
        _mark(stack, model, ELEMENTWISE)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                _mark(stack, module, HEAD if module is head else MATMUL)
            elif type(module).__name__.endswith("Norm"):
                _mark(stack, module, NORM)
            elif type(module).__name__.endswith(("Attention", "RotaryEmbedding")):
                _mark(stack, module, ROTARY)

        def marked_attention(*args: Any, **options: Any) -> Any:
            with record_function(f"{_SPAN}{ATTENTION}"):
                return packed_attention(*args, **options)

        AttentionInterface.register(PACKED, marked_attention)
        stack.callback(AttentionInterface.register, PACKED, packed_attention)
        yield


def _mark(stack: ExitStack, module: nn.Module, group: str) -> None:
    """Open a span before the module's forward pass and close it after."""
    open_spans: list[record_function] = []

    def enter(*_: object) -> None:
        open_spans.append(record_function(f"{_SPAN}{group}"))
        open_spans[-1].__enter__()

    def leave(*_: object) -> None:
        open_spans.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave).remove)
