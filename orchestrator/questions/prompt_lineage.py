"""How a version was made and where it went: base, data, spec, job, MLflow run, promotions, parents.

All of it stands in the registry; neither the base nor the artifacts need be there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.bootstrap import Parts
from orchestrator.domain.digest import short
from orchestrator.domain.errors import UnknownName
from orchestrator.domain.job import Attempt, Job
from orchestrator.domain.prompt_version import Promotion, PromptRef, PromptVersion

#: Of the versions before, so many are shown.
MAX_PARENTS = 10


@dataclass(frozen=True)
class PromptLineage:
    """A version, the fingerprint that its base's name stands for now (None: no such base), the job
    that made it with its attempts, the moves of aliases to it, and the versions before it, the
    nearest first."""

    version: PromptVersion
    current_base: str | None
    job: Job | None
    attempts: tuple[Attempt, ...]
    promotions: tuple[Promotion, ...]
    parents: tuple[PromptVersion, ...]


@dataclass(frozen=True)
class Branch:
    """A node of the tree that is shown: a line of text, and what hangs on it."""

    text: str
    branches: tuple["Branch", ...] = ()


def trace_lineage(parts: Parts, ref: PromptRef) -> PromptLineage:
    """Look up all there is to know of how a version was made. Raises UnknownName."""
    version = parts.prompts.resolve(ref)
    job = _job(parts, version)
    return PromptLineage(
        version,
        _current_base(parts, version.lineage.base),
        job,
        tuple(parts.jobs.attempts(job.id)) if job else (),
        tuple(
            move
            for move in parts.prompts.history(version.task)
            if move.to_version == version.number
        ),
        tuple(_parents(parts, version)),
    )


def as_tree(lineage: PromptLineage) -> Branch:
    """The lineage as a tree of plain words."""
    version = lineage.version
    aliases = f", {', '.join(version.aliases)} now" if version.aliases else ""
    branches = (
        _base(lineage),
        _data(version),
        Branch(
            f"spec {short(version.lineage.spec_digest)}, seed {version.lineage.seed}, "
            f"code {version.lineage.code_version}"
        ),
        _work(lineage),
        _run(version),
        Branch("promotions" if lineage.promotions else "never promoted", _moves(lineage)),
        *_chain(lineage),
    )
    return Branch(f"{version.ref} {short(version.digest)}{aliases}", branches)


def as_text(tree: Branch) -> str:
    """The tree drawn with lines, a node a line."""
    return "\n".join((tree.text, *_drawn(tree.branches)))


def _drawn(branches: tuple[Branch, ...]) -> Iterator[str]:
    for branch in branches:
        is_last = branch is branches[-1]
        yield f"{'└── ' if is_last else '├── '}{branch.text}"
        yield from (f"{'    ' if is_last else '│   '}{line}" for line in _drawn(branch.branches))


def _job(parts: Parts, version: PromptVersion) -> Job | None:
    try:
        return parts.jobs.get(version.lineage.job) if version.lineage.job else None
    except UnknownName:
        return None


def _current_base(parts: Parts, name: str) -> str | None:
    try:
        return parts.bases.get(name).fingerprint
    except UnknownName:
        return None


def _parents(parts: Parts, version: PromptVersion) -> Iterator[PromptVersion]:
    for _ in range(MAX_PARENTS):
        if version.lineage.parent is None:
            return
        version = parts.prompts.resolve(PromptRef(version.task, version.lineage.parent))
        yield version


def _base(lineage: PromptLineage) -> Branch:
    made_on = lineage.version.lineage
    text = f"base {made_on.base} {short(made_on.base_fingerprint)}"
    if lineage.current_base is None:
        return Branch(f"{text} (not registered here)")
    if lineage.current_base != made_on.base_fingerprint:
        newer = short(lineage.current_base)
        return Branch(f"{text} (stale: {made_on.base} is {newer} now)")
    return Branch(text)


def _data(version: PromptVersion) -> Branch:
    num_rows = version.lineage.num_rows
    sets = version.lineage.datasets.items()
    return Branch(
        "data" if sets else "data unknown",
        tuple(Branch(f"{split}: {num_rows.get(split, 0)} rows, {short(d)}") for split, d in sets),
    )


def _work(lineage: PromptLineage) -> Branch:
    job, job_id = lineage.job, lineage.version.lineage.job
    if job is None:
        return Branch(f"job {short(job_id)} (not in this registry)" if job_id else "no job")
    attempts = tuple(
        Branch(f"attempt {each.number}: {each.outcome or 'running'}{_because(each.cause)}")
        for each in lineage.attempts
    )
    return Branch(f"job {short(job.id)} of {job.owner}, {job.state}", attempts)


def _because(cause: str | None) -> str:
    return f", {cause.splitlines()[0]}" if cause else ""


def _run(version: PromptVersion) -> Branch:
    if version.run_id is None:
        return Branch("MLflow has not heard of it yet")
    model = f", model version {version.model_version}" if version.model_version else ""
    return Branch(f"MLflow run {version.run_id}{model}")


def _moves(lineage: PromptLineage) -> tuple[Branch, ...]:
    return tuple(
        Branch(
            f"{move.alias}: {move.from_version or 'none'} -> {move.to_version} by {move.actor}, "
            f"{move.promoted_at:%Y-%m-%d %H:%M} UTC{_because(move.reason)}"
        )
        for move in lineage.promotions
    )


def _chain(lineage: PromptLineage) -> tuple[Branch, ...]:
    """The parents, each below its child; the last one says how many more there are."""
    chain: tuple[Branch, ...] = ()
    for parent in reversed(lineage.parents):
        before = parent.lineage.parent
        if not chain and before:
            chain = (Branch(f"and {before} more before it" if before > 1 else "and 1 more"),)
        chain = (Branch(f"parent {parent.ref} {short(parent.digest)}", chain),)
    return chain
