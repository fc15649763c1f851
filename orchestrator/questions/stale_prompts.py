"""Tasks whose newest version stands on a base that its name no longer means, and their retraining.

A task with a newer version on the new base is not stale: it was retrained, whether that version
was promoted or not. A retraining is the job's own spec and data under new files; the base's name in
it means the new base.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from encoders.files.durable_file import make_folder
from orchestrator.bootstrap import Parts
from orchestrator.domain.errors import InvalidInput, TuttiError, UnknownName
from orchestrator.domain.job import Submission
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.domain.task_spec import DataSpec, TaskSpec, check_name

ELSEWHERE = "Give --write a folder that does not have these files."


@dataclass(frozen=True)
class StalePrompt:
    """A version whose base's name now stands for `current_base`, and the submission that made it
    (None: it was made elsewhere, so there is no spec to train again)."""

    version: PromptVersion
    current_base: str
    submission: Submission | None


def find_stale(parts: Parts, limit: int = 100) -> list[StalePrompt]:
    """The stale tasks' newest versions, the newest first."""
    current = {base.name: base.fingerprint for base in parts.bases.list()}
    return [
        StalePrompt(version, current[version.lineage.base], _submission(parts, version))
        for version in parts.prompts.list_superseded(limit)
    ]


def write_retraining(parts: Parts, stale: Sequence[StalePrompt], folder: Path) -> list[Path]:
    """Write a spec and its data for each prompt that has them; return the specs' paths.

    Raises InvalidInput, and writes nothing, if any of the files is there already.
    """
    specs: dict[Path, str] = {}
    data: dict[Path, str] = {}
    for each in stale:
        if each.submission is not None:
            spec, files = _renamed(each.submission)
            text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            specs[folder / f"{spec.task}.yaml"] = text
            data |= {folder / name: digest for name, digest in files.items()}
    taken = [path for path in (*specs, *data) if path.exists() or path.is_symlink()]
    if taken:
        raise InvalidInput(f"{taken[0]}: there already; nothing was written", ELSEWHERE)
    try:
        for path, content in _contents(parts, specs, data):
            make_folder(path.parent)
            with path.open("xb") as file:
                file.write(content)
    except OSError as error:
        why = f"{error.filename}: cannot be written: {error.strerror}"
        raise TuttiError(why, ELSEWHERE) from error
    return list(specs)


def _contents(
    parts: Parts, specs: Mapping[Path, str], data: Mapping[Path, str]
) -> Iterator[tuple[Path, bytes]]:
    """Data first: a spec that is there can be submitted."""
    for path, digest in data.items():
        yield path, parts.artifacts.get_bytes(digest)
    for path, text in specs.items():
        yield path, text.encode()


def _submission(parts: Parts, version: PromptVersion) -> Submission | None:
    try:
        return parts.jobs.get(version.lineage.job).submission if version.lineage.job else None
    except UnknownName:
        return None


def _renamed(submission: Submission) -> tuple[TaskSpec, dict[str, str]]:
    """The spec with data files of its own, and their digests by name. The paths of the first
    submission say nothing: data is stored by digest."""
    spec = submission.spec
    names = {
        split: f"data/{check_name(spec.task)}.{check_name(split)}.jsonl"
        for split in submission.datasets
    }
    values = {**spec.data.model_dump(mode="json"), **names}
    files = {names[split]: digest for split, digest in submission.datasets.items()}
    return spec.model_copy(update={"data": DataSpec.model_validate(values)}), files
