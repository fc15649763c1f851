"""From a spec file to a submission: everything is checked first, then the data is stored.

Checking reads and tokenises every row, so that a job never fails for what could be known before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.bootstrap import Parts
from orchestrator.domain.dataset import Dataset, read_dataset
from orchestrator.domain.errors import InvalidData, InvalidInput
from orchestrator.domain.job import Submission
from orchestrator.domain.job_array import Work
from orchestrator.domain.spec_file import read_spec
from orchestrator.domain.task_spec import TaskSpec

if TYPE_CHECKING:
    from encoders.text.tokenization import TextTokenizer


@dataclass(frozen=True)
class CheckedTask:
    """A spec that is right, with its data, and the work that each of its trials will be."""

    spec: TaskSpec
    folder: Path
    base_fingerprint: str
    datasets: Mapping[str, Dataset]
    work: tuple[Work, ...]
    warnings: tuple[str, ...] = ()


def check_task(path: Path, parts: Parts) -> CheckedTask:
    """Read a spec and its data and check them against the base; raise InvalidInput."""
    from orchestrator.training.prompt_start import start_tokens
    from orchestrator.training.task_data import encode_task, max_row_length

    spec = read_spec(path)
    template = spec.parsed_template()
    manual = spec.parsed_manual_prompt()
    fields = {*template.fields, *(manual.fields if manual else ()), spec.answer}
    datasets = {
        split: read_dataset(path.parent / file, sorted(fields))
        for split, file in spec.data.files().items()
    }
    base = parts.bases.get(spec.base)
    tokenizer = _tokenizer(parts.base_store.path(base.fingerprint))
    data = encode_task(spec, datasets, tokenizer, max_row_length(spec, base.max_length))
    work = []
    for trial in spec.trials().values():
        start_tokens(trial, tokenizer)
        positions = data.mean_positions * trial.training.batch_size
        work.append(Work(positions, _num_bytes(trial, base.hidden_size)))
    warnings = _overlap_warnings(spec, datasets)
    return CheckedTask(spec, path.parent, base.fingerprint, datasets, tuple(work), warnings)


def store_task(task: CheckedTask, parts: Parts, nonce: str) -> Submission:
    """Store the data files by digest, so that later edits do not reach the job."""
    files = task.spec.data.files()
    stored = {
        split: parts.artifacts.put_file(task.folder / files[split]) for split in task.datasets
    }
    for split, artifact in stored.items():
        if artifact.digest != task.datasets[split].digest:
            raise InvalidData(f"{task.folder / files[split]}: changed while it was being read")
    return Submission(
        spec=task.spec,
        base_fingerprint=task.base_fingerprint,
        datasets={split: artifact.digest for split, artifact in stored.items()},
        num_rows={split: len(dataset) for split, dataset in task.datasets.items()},
        num_positions=sum(each.num_positions for each in task.work),
        num_bytes=sum(each.num_bytes for each in task.work),
        nonce=nonce,
    )


def _num_bytes(spec: TaskSpec, token_dim: int) -> float:
    """What a training holds of an encoder: weights, gradient, two moments, the best weights."""
    from orchestrator.training.prompt_module import num_learned

    num_virtual_tokens = spec.parsed_template().num_virtual_tokens
    return 5 * 4.0 * num_learned(spec.encoder, num_virtual_tokens, token_dim)


def raise_all(faults: Sequence[InvalidInput]) -> None:
    """Raise all faults as one, or nothing if there are none."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise InvalidInput("\n".join(str(fault) for fault in faults))


def _overlap_warnings(spec: TaskSpec, datasets: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Held-out rows that were trained on measure nothing: say how many there are, and the first."""
    names = spec.parsed_template().fields
    train = {tuple(row[name] for name in names) for row in datasets["train"].rows}
    warnings = []
    for split, dataset in datasets.items():
        rows = [tuple(row[name] for name in names) for row in dataset.rows]
        seen = [index for index, row in enumerate(rows) if row in train]
        if split != "train" and seen:
            warnings.append(
                f"{len(seen)} of {len(rows)} {split} rows also stand in the training data (the "
                f"first at {dataset.place(seen[0])}); figures on them say little"
            )
    return tuple(warnings)


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> "TextTokenizer":
    from encoders.text.tokenization import TextTokenizer

    return TextTokenizer.load(folder)
