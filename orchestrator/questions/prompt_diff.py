"""How two versions differ: config, metrics, lineage, and virtual token by virtual token.

The base is needed for the nearest vocabulary tokens alone; where it cannot be had they are left
out, and a note says why.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import starmap
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.bootstrap import Parts
from orchestrator.domain.digest import short
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.prompt_version import PromptVersion

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.inference.nearest_tokens import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """A value that differs; None on the side that lacks it."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class TokenChange:
    """The virtual token at `index` on both sides: the cosine between them, and the vocabulary's
    tokens nearest to each. None and () where there is nothing to compare."""

    index: int
    cosine: float | None
    nearest_a: tuple[str, ...] = ()
    nearest_b: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptDiff:
    """What differs from version `a` to version `b`; `notes` say what could not be compared."""

    a: str
    b: str
    config: tuple[Change, ...]
    metrics: tuple[Change, ...]
    lineage: tuple[Change, ...]
    tokens: tuple[TokenChange, ...]
    notes: tuple[str, ...]


def diff_prompts(parts: Parts, a: PromptVersion, b: PromptVersion) -> PromptDiff:
    """Compare two versions, of one task or of two. Raises IntegrityError for altered weights."""
    tokens, notes = _compare_tokens(parts, a, b)
    return PromptDiff(
        a.ref,
        b.ref,
        _changes(a.config, b.config),
        _changes(a.metrics, b.metrics),
        _changes(vars(a.lineage), vars(b.lineage)),
        tokens,
        notes,
    )


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    first, second = dict(_flat(a)), dict(_flat(b))
    return tuple(
        Change(name, first.get(name), second.get(name))
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under dotted names, so that a change names the value that changed."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _compare_tokens(
    parts: Parts, a: PromptVersion, b: PromptVersion
) -> tuple[tuple[TokenChange, ...], tuple[str, ...]]:
    import torch.nn.functional as F

    first, second = _tokens(parts, a), _tokens(parts, b)
    notes: list[str] = []
    cosines: list[float | None] = []
    if a.lineage.base_fingerprint != b.lineage.base_fingerprint:
        notes.append("the bases differ, so virtual tokens have no cosine between them")
    elif first.shape[1] == second.shape[1]:
        num_shared = min(len(first), len(second))
        cosines = F.cosine_similarity(first[:num_shared], second[:num_shared], dim=1).tolist()
    vocabulary = cache(partial(_vocabulary, parts))  # mostly one base: it is loaded once
    nearest = [_nearest(vocabulary, *side, notes) for side in ((a, first), (b, second))]
    count = max(len(first), len(second))
    columns = (_padded(cosines, count, None), *(_padded(side, count, ()) for side in nearest))
    tokens = tuple(starmap(TokenChange, zip(range(count), *columns, strict=True)))
    return tokens, tuple(dict.fromkeys(notes))


def _tokens(parts: Parts, version: PromptVersion) -> "Tensor":
    from orchestrator.inference.served_prompt import read_virtual_tokens

    weights = parts.artifacts.get_bytes(version.artifacts["prompt_embeddings"].digest)
    return read_virtual_tokens(version, weights)


def _vocabulary(parts: Parts, fingerprint: str) -> "Vocabulary":
    from orchestrator.inference.nearest_tokens import Vocabulary

    parts.base_store.verify(fingerprint)
    return Vocabulary.load(parts.base_store.path(fingerprint))


def _nearest(
    vocabulary: Callable[[str], "Vocabulary"],
    version: PromptVersion,
    tokens: "Tensor",
    notes: list[str],
) -> list[tuple[str, ...]]:
    """The texts nearest to each token; none, and a note, where the base cannot be had."""
    fingerprint = version.lineage.base_fingerprint
    try:
        return vocabulary(fingerprint).nearest(tokens)
    except TuttiError as error:
        base = f"{version.lineage.base} ({short(fingerprint)})"
        notes.append(f"no nearest tokens on the base {base}: {error.message}")
        return []


def _padded(values: list[T], count: int, filler: T) -> list[T]:
    return [*values, *[filler] * (count - len(values))]
