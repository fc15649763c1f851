"""The manifest of an archive: its versions, field by field, checked before anything is believed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from encoders.errors import TemplateError
from encoders.files.untrusted_file import parse_json
from encoders.text.template import Template
from orchestrator.domain.digest import canonical_json
from orchestrator.domain.prompt_version import Artifact, Lineage, PromptVersion, TrainedPrompt
from orchestrator.domain.task_spec import check_name

FORMAT = "tutti-prompts"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,99}$")]
ShortText = Annotated[str, Field(max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Prompt(BaseModel):
    """What a version's config must say, whatever else stands in it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    num_virtual_tokens: int = Field(ge=1, le=1 << 20)
    token_dim: int = Field(ge=1, le=1 << 20)
    template: str
    answer: str
    metric: Name
    candidates: list[str] | None
    ends_answer: bool
    max_answer_tokens: int = Field(ge=1)
    encoder: dict[str, Any]
    max_length: int | None = Field(None, ge=1)
    chat: dict[Literal["before", "after"], str] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Prompt":
        try:
            Template.parse(self.template, self.answer)
        except TemplateError as error:
            raise ValueError(f"the template: {error}") from error
        if not isinstance(self.encoder.get("type"), str):
            raise ValueError("the encoder has no type")
        if self.chat is not None and self.chat.keys() != {"before", "after"}:
            raise ValueError("chat is text before and after")
        return self


class ArchivedArtifact(_Part):
    digest: Digest
    num_bytes: int = Field(ge=0, le=1 << 32)


class ArchivedOrigin(_Part):
    """Where a version comes from; `job` is its job's id there."""

    registry: ShortText
    ref: ShortText
    created_at: ShortText
    job: ShortText | None = None


class ArchivedLineage(_Part):
    """A version's lineage, without what is its first registry's own."""

    base: ShortText
    base_fingerprint: ShortText
    datasets: dict[Name, ShortText]
    num_rows: dict[Name, int]
    spec_digest: ShortText
    seed: int
    code_version: ShortText
    author: ShortText | None = None
    packages: dict[ShortText, ShortText] = {}
    hardware: ShortText = ""
    origin: ArchivedOrigin


class ArchivedVersion(_Part):
    """One version. `digest` must be the one of what else is said here."""

    task: str
    digest: Digest
    config: dict[str, Any]
    metrics: dict[Name, FiniteFloat]
    artifacts: dict[Name, ArchivedArtifact]
    lineage: ArchivedLineage

    @model_validator(mode="after")
    def _check(self) -> "ArchivedVersion":
        check_name(self.task)
        Prompt.model_validate(self.config)
        missing = {"encoder", "prompt_embeddings"} - self.artifacts.keys()
        if missing:
            raise ValueError(f"it lacks the artifact {min(missing)}")
        if self.trained().digest != self.digest:
            raise ValueError("its config, weights and base are not those of its digest")
        return self

    def trained(self) -> TrainedPrompt:
        """What registering takes. It claims no job of this registry."""
        lineage = self.lineage.model_dump(exclude_none=True)
        artifacts = {name: Artifact(**dict(each)) for name, each in self.artifacts.items()}
        return TrainedPrompt(
            self.task, self.config, self.metrics, artifacts, Lineage(**lineage, job=None)
        )


class Manifest(_Part):
    format: Literal["tutti-prompts"]
    format_version: Literal[1]
    versions: list[ArchivedVersion] = Field(min_length=1)

    def artifacts(self) -> Mapping[str, int]:
        """The digests of all artifacts, and their sizes in bytes."""
        return {
            each.digest: each.num_bytes
            for version in self.versions
            for each in version.artifacts.values()
        }


def dump_manifest(versions: Sequence[PromptVersion], registry: str) -> bytes:
    """The manifest of `versions`, which come from the registry of that name."""
    return canonical_json(
        {
            "format": FORMAT,
            "format_version": 1,
            "versions": [_archived(version, registry) for version in versions],
        }
    ).encode()


def read_manifest(data: bytes) -> Manifest:
    """Raises ValueError, which says where it is wrong."""
    try:
        return Manifest.model_validate(parse_json(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _archived(version: PromptVersion, registry: str) -> dict[str, Any]:
    lineage = version.lineage
    origin = lineage.origin or {
        "registry": registry,
        "ref": version.ref,
        "created_at": version.created_at.isoformat(),
        **({"job": lineage.job} if lineage.job else {}),
    }
    kept = {
        name: value
        for name, value in vars(replace(lineage, origin=dict(origin))).items()
        if name in ArchivedLineage.model_fields and value is not None
    }
    return {
        "task": version.task,
        "digest": version.digest,
        "config": dict(version.config),
        "metrics": dict(version.metrics),
        "artifacts": {name: vars(artifact) for name, artifact in version.artifacts.items()},
        "lineage": {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in kept.items()
        },
    }
