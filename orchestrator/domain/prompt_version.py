"""A prompt version: an immutable, content-addressed trained prompt with its lineage."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.task_spec import check_name


@dataclass(frozen=True)
class Artifact:
    """A stored file: its sha256 and size. The digest is its only name."""

    digest: str
    num_bytes: int


@dataclass(frozen=True)
class Lineage:
    """How a version was made. Digests are sha256; `parent` is the previous version of the task.

    `author` is who submitted the job, `packages` the versions of what it was trained with, and
    `hardware` the machine in one line. `origin` is set for a version that was imported: the
    registry that it comes from, and what it and its job are there. Versions of older programs lack
    the last five.
    """

    base: str
    base_fingerprint: str
    datasets: Mapping[str, str]
    num_rows: Mapping[str, int]
    spec_digest: str
    seed: int
    code_version: str
    job: str | None = None
    parent: int | None = None
    attempt: int | None = None
    author: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    origin: Mapping[str, str] | None = None

    @property
    def is_dirty(self) -> bool:
        """Whether files of the checkout that made the version differed from its commit."""
        return self.code_version.endswith(".dirty")


@dataclass(frozen=True)
class TrainedPrompt:
    """What training hands over: enough to register a version. Artifacts: encoder,
    prompt_embeddings, curve; config: what inference needs to use the prompt."""

    task: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    artifacts: Mapping[str, Artifact]
    lineage: Lineage

    @property
    def digest(self) -> str:
        """The content digest: config, weights and base, and nothing about when or where."""
        weights = {name: self.artifacts[name].digest for name in ("encoder", "prompt_embeddings")}
        return digest_json(
            {
                "config": dict(self.config),
                "weights": weights,
                "base": self.lineage.base_fingerprint,
            }
        )


@dataclass(frozen=True)
class PromptVersion:
    """A registered version. `run_id` and `model_version` are MLflow's, once it has been told.

    `aliases`, `description` and `tags` may change, with history; all else never does.
    """

    task: str
    number: int
    digest: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    artifacts: Mapping[str, Artifact]
    lineage: Lineage
    created_at: datetime
    aliases: tuple[str, ...] = ()
    run_id: str | None = None
    model_version: str | None = None
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """`TASK@NUMBER`."""
        return f"{self.task}@{self.number}"


@dataclass(frozen=True)
class Promotion:
    """One move of an alias. `generation` counts the alias's moves, from 1. `to_version` is None
    where it was taken away.

    `overrode` holds the refusals of the gate that the move was forced against; `restores` makes it
    a rollback: it is the generation of the move whose version came back.
    """

    task: str
    alias: str
    to_version: int | None
    from_version: int | None
    generation: int
    actor: str
    reason: str
    gate: str | None
    promoted_at: datetime
    overrode: str | None = None
    restores: int | None = None

    @property
    def standing(self) -> int:
        """The generation of the promotion that is in force after this move."""
        return self.generation if self.restores is None else self.restores


@dataclass(frozen=True)
class Approval:
    """Somebody other than its author stands for a version."""

    actor: str
    note: str
    approved_at: datetime


@dataclass(frozen=True)
class DescriptionChange:
    """One change of a version's `description` or of `tags.KEY`. None: there was, or is, none."""

    field: str
    old: str | None
    new: str | None
    actor: str
    changed_at: datetime


@dataclass(frozen=True)
class PromptRef:
    """`TASK`, `TASK@7` or `TASK@production`; `target` is a number, an alias, or None (newest)."""

    task: str
    target: int | str | None

    @classmethod
    def parse(cls, text: str) -> "PromptRef":
        """Parse a reference, or raise InvalidInput."""
        task, at, target = text.partition("@")
        try:
            check_name(task)
            if not at:
                return cls(task, None)
            if re.fullmatch(r"[1-9][0-9]{0,8}", target):
                return cls(task, int(target))
            return cls(task, check_name(target))
        except ValueError as error:
            raise InvalidInput(
                f"{text!r} is not a prompt reference: {error}",
                "Write TASK@NUMBER or TASK@ALIAS, for example country-continent@production.",
            ) from error

    def __str__(self) -> str:
        return self.task if self.target is None else f"{self.task}@{self.target}"
