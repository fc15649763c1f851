"""What a batch run is asked to do: the same values in the command line, the ledger and a worker."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.domain.prompt_version import PromptRef


class BatchMode(StrEnum):
    """What is done with a row. AUTO: CLASSIFY where its version has candidates, else GENERATE."""

    AUTO = "auto"
    CLASSIFY = "classify"
    GENERATE = "generate"
    SCORE = "score"
    EMBED = "embed"


@dataclass(frozen=True)
class Decoding:
    """How answers are generated, in transformers' words. Nothing here: greedily."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    num_beams: int = 1
    max_new_tokens: int | None = None  # None: the version's own longest answer
    stop_strings: tuple[str, ...] = ()
    seed: int = 0  # with a row's number: all that its samples depend on


@dataclass(frozen=True)
class BatchSettings:
    """`prompt` answers all rows; else each row names its task, and `alias` stands for a version
    that it does not name. `columns`: the input's column for a field of another name."""

    mode: BatchMode = BatchMode.AUTO
    alias: str = "production"
    prompt: PromptRef | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    calibrate: bool = False
    decoding: Decoding = field(default_factory=Decoding)
