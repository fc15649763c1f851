"""What a predictor is asked and what it answers: one base's rows, encoded."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """A row to answer. `context`: `ServedPrompt.encode` of its fields."""

    prompt: str  #: the key of its prompt, `TASK@NUMBER`
    context: tuple[int, ...]
    answers: tuple[str, ...] = ()  #: SCORE: the answers to score; none: the prompt's candidates
    seed: int = 0  #: the row's number: samples depend on it and `Decoding.seed` alone


@dataclass(frozen=True)
class Answer:
    """What a mode leaves out is None."""

    text: str | None = None  #: CLASSIFY, GENERATE
    score: float | None = None  #: its probability: among the candidates, or as generated
    #: CLASSIFY: each candidate's probability; SCORE: each given answer's log-likelihood
    scores: Mapping[str, float] | None = None
    embedding: tuple[float, ...] | None = None
    num_tokens: int = 0  #: generated ones
