"""Checks the registry against its artifacts, its bases, itself and MLflow; mends what is safe.

A check changes nothing. A repair uses what is there (the audit, the outbox, a copy of the store)
and invents nothing; what it cannot mend stays a finding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.bases.base_store import BaseStore
from orchestrator.domain.digest import short
from orchestrator.domain.errors import IntegrityError, StoreUnavailable, TuttiError
from orchestrator.registry.base_model_registry import BaseModelRegistry
from orchestrator.registry.consistency import Consistency, Fault, Link
from orchestrator.registry.repairs import Repairs
from orchestrator.tracking.lost_links import LostLink
from orchestrator.upkeep.artifact_check import SET_ASIDE, ArtifactCheck
from orchestrator.upkeep.finding import Finding, Repair

#: Deliveries that failed while MLflow answers: the fault is the item's own.
STUCK_ATTEMPTS = 5


@dataclass(frozen=True)
class MlflowLook:
    """How MLflow is asked: `ping` says why it does not answer, else None; `lost` may raise."""

    ping: Callable[[], str | None]
    lost: Callable[[Sequence[Link]], Sequence[LostLink]]


@dataclass(frozen=True)
class Report:
    """What a check found, and what it could not look at and why."""

    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        return all(finding.is_mended for finding in self.findings)


class Fsck:
    """One check of everything."""

    def __init__(
        self,
        consistency: Consistency,
        repairs: Repairs,
        artifacts: ArtifactCheck,
        bases: BaseModelRegistry,
        base_store: BaseStore,
        mlflow: MlflowLook,
    ) -> None:
        self._consistency, self._repairs = consistency, repairs
        self._artifacts, self._mlflow = artifacts, mlflow
        self._bases, self._base_store = bases, base_store

    def run(self, repair: bool = False, quick: bool = False) -> Report:
        """Check everything; `quick` reads no artifact's or base's bytes and recomputes nothing."""
        not_checked: list[str] = []
        found = [
            *_guarded("database", self._database(quick)),
            *_guarded("artifact store", self._artifacts.findings(quick)),
            *self._of_bases(quick),
            *self._of_mlflow(not_checked),
        ]
        if repair:
            found = [_repaired(finding) for finding in found]
        return Report(tuple(found), tuple(not_checked))

    def _database(self, quick: bool) -> Iterator[Finding]:
        look = self._consistency
        yield from map(_finding, look.damages())
        for fault in (*look.aliases(), *look.counters()):
            yield _finding(fault, self._repair_of(fault))
        if not quick:
            yield from map(_finding, look.contents())
        for fault in look.untold():
            yield _finding(fault, self._tell_again(fault.task, fault.number))

    def _of_bases(self, quick: bool) -> Iterator[Finding]:
        for record in self._bases.list():
            where = f"base {record.name} ({short(record.fingerprint)})"
            try:
                self._base_store.path(record.fingerprint)
            except IntegrityError as error:
                yield Finding("base-missing", where, error.message)
                continue
            try:
                if not quick:
                    self._base_store.verify(record.fingerprint)
            except IntegrityError as error:
                yield Finding("base-altered", where, error.message)

    def _of_mlflow(self, not_checked: list[str]) -> list[Finding]:
        error = self._mlflow.ping()
        if error is not None:
            not_checked.append(error)
            return []
        try:
            lost = self._mlflow.lost(self._consistency.links())
        except Exception as failure:  # MLflow raises nearly every kind
            not_checked.append(f"MLflow: {failure}".splitlines()[0][:300])
            return []
        stuck = [_finding(fault) for fault in self._consistency.stuck(STUCK_ATTEMPTS)]
        return stuck + [
            Finding(
                "mlflow-link-lost",
                f"{link.task}@{link.number}",
                link.what,
                repair=self._tell_again(link.task, link.number),
            )
            for link in lost
        ]

    def _repair_of(self, fault: Fault) -> Repair | None:
        repairs, task, alias = self._repairs, fault.task, fault.alias
        if fault.kind == "alias-differs":
            done = "put back to what its last promotion says"
            return lambda: done if repairs.restore_alias(task, alias) else None
        if fault.kind == "counter-behind":
            return lambda: "raised" if repairs.raise_counter(task) else None
        return None

    def _tell_again(self, task: str, number: int) -> Repair:
        done = "MLflow will be told of it"
        return lambda: done if self._repairs.tell_again(task, number) else None


def _guarded(where: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """A check that what it looks at breaks off is a finding too."""
    try:
        yield from findings
    except StoreUnavailable as error:
        yield Finding("artifact-unreadable", where, error.message)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"a row cannot be read: {type(error).__name__}: {error}"
        yield Finding("database-damaged", where, what[:300])


def _finding(fault: Fault, repair: Repair | None = None) -> Finding:
    return Finding(fault.kind, fault.where, fault.what, repair=repair)


def _repaired(finding: Finding) -> Finding:
    """The finding after its repair, if it has one; a repair that fails says why."""
    if finding.repair is None:
        return finding
    try:
        done = finding.repair()
    except TuttiError as error:
        return replace(finding, done=f"not repaired: {error.message}")
    is_mended = done is not None and not done.startswith(SET_ASIDE)
    return replace(finding, done=done or "", is_mended=is_mended)
