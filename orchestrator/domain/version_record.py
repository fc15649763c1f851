"""A prompt version as JSON, and back: what leaves the registry is believed by its digest alone."""

from pydantic import TypeAdapter, ValidationError

from orchestrator.domain.errors import IntegrityError, InvalidInput
from orchestrator.domain.prompt_version import PromptRef, PromptVersion, TrainedPrompt

_RECORD = TypeAdapter(PromptVersion)


def dump_version(version: PromptVersion) -> bytes:
    """The version as one line of JSON."""
    return _RECORD.dump_json(version)


def read_version(data: bytes | str, where: str) -> PromptVersion:
    """The version that `dump_version` or an MLflow run's version.json holds.

    Keys of newer programs are left out. Raises IntegrityError, which opens with `where`, for what
    is no version, or one whose config, weights or base are not those of its digest.
    """
    try:
        version = _RECORD.validate_json(data)
        PromptRef.parse(version.ref)
        actual = content_digest(version)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise IntegrityError(f"{where}: not a prompt version: {place}: {first['msg']}") from error
    except (InvalidInput, KeyError, ValueError) as error:
        raise IntegrityError(f"{where}: not a prompt version: {error}") from error
    if actual != version.digest:
        raise IntegrityError(
            f"{where}: {version.ref} is not what its digest says: expected {version.digest}, "
            f"actual {actual}"
        )
    return version


def content_digest(version: PromptVersion) -> str:
    """The digest of what the version holds now: its config, weights and base."""
    return TrainedPrompt(
        version.task, version.config, version.metrics, version.artifacts, version.lineage
    ).digest
