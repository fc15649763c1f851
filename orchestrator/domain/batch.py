"""What a batch run is asked to do: the same values in the command line, the ledger and a worker."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

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
    that it does not name. `columns`: the input's column for a field of another name.
    `answers_field`: where a row's own answers to SCORE stand, as text (one) or a JSON array of
    texts; None: a version's candidates. `manual_prompt`: a template without virtual tokens that
    answers in place of `prompt`, whose answer field and candidates stay."""

    mode: BatchMode = BatchMode.AUTO
    alias: str = "production"
    prompt: PromptRef | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    calibrate: bool = False
    decoding: Decoding = field(default_factory=Decoding)
    answers_field: str | None = None
    manual_prompt: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the ledger and the manifest hold it; `from_json` gives the same back."""
        value = asdict(self) | {"prompt": None if self.prompt is None else str(self.prompt)}
        value["decoding"]["stop_strings"] = list(self.decoding.stop_strings)
        return value | {"columns": dict(self.columns)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BatchSettings":
        decoding = {**value["decoding"]}
        decoding["stop_strings"] = tuple(decoding["stop_strings"])
        prompt = value["prompt"]
        return cls(
            **{
                **value,
                "mode": BatchMode(value["mode"]),
                "prompt": None if prompt is None else PromptRef.parse(prompt),
                "decoding": Decoding(**decoding),
            }
        )
