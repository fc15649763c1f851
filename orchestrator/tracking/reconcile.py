"""Brings MLflow and the registry together again after hands, restores or lost answers.

The registry is the truth about versions: what MLflow lost of them is made again, always. An alias
moved or taken away by hand in MLflow is reported, set back, or adopted as a move here; MLflow keeps
no record of who did it. Others' runs, models and aliases are left alone. Done twice, the second
finds nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.domain.errors import TuttiError
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.tracking.drift import Drift, aliases_in_mlflow, find_drift
from orchestrator.tracking.mlflow_client import explain
from orchestrator.tracking.mlflow_contents import MlflowContents
from orchestrator.tracking.mlflow_mirror import MlflowMirror

if TYPE_CHECKING:
    from orchestrator.registry.outbox import Outbox
    from orchestrator.registry.prompt_registry import PromptRegistry

Policy = Literal["report", "adopt", "revert"]
#: Makes a promotion of what MLflow has: `TASK@production`, the version it is at there (None: it was
#: taken away), and the one the registry has it at now (0: none). May raise TuttiError.
Adopt = Callable[[PromptRef, int | None, int], object]
MAX_VERSIONS = 1_000_000
_REPORTED = "changed by hand in MLflow: adopt it (--adopt) or set MLflow back (--revert)"


@dataclass(frozen=True)
class Repair:
    """A difference, and what was `done` about it or, in `error`, why nothing was."""

    drift: Drift
    done: str = ""
    error: str = ""


@dataclass(frozen=True)
class SyncReport:
    """What a sync found, in order. `error`: why MLflow could not be told or asked everything."""

    repairs: tuple[Repair, ...]
    error: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether MLflow and the registry agree now."""
        return self.error is None and all(repair.done for repair in self.repairs)


@dataclass(frozen=True)
class _Compared:
    """What both hold at one time."""

    contents: MlflowContents
    versions: dict[str, PromptVersion]
    drifts: list[Drift]


class Reconciler:
    """Compares and repairs while nobody else tells MLflow anything."""

    def __init__(self, mirror: MlflowMirror, registry: "PromptRegistry", outbox: "Outbox") -> None:
        self._mirror, self._registry, self._outbox = mirror, registry, outbox

    def find(self, task: str | None = None) -> SyncReport:
        """What differs, of one task or of all, once MLflow has been told what waits. Repairs
        nothing. Raises TuttiError while another process tells MLflow."""
        return self._sync(task, lambda drift, _: Repair(drift))

    def sync(self, policy: Policy, adopt: Adopt, task: str | None = None) -> SyncReport:
        """`find`, and repair it."""

        def repair(drift: Drift, compared: _Compared) -> Repair:
            try:
                done = self._repair(drift, compared, policy, adopt)
            except TuttiError as error:
                return Repair(drift, error=error.message)
            return Repair(drift, done, "" if done else _REPORTED)

        return self._sync(task, repair)

    def _sync(self, task: str | None, repair: Callable[[Drift, _Compared], Repair]) -> SyncReport:
        repairs: list[Repair] = []
        try:
            with self._alone():
                error = self._mirror.deliver_alone().error
                compared = self._compare(task)
                for drift in compared.drifts:
                    self._require_turn()
                    repairs.append(repair(drift, compared))
                error = self._mirror.deliver_alone().error or error
        except TuttiError as failure:
            if not repairs:
                raise
            error = failure.message  # what was done is done, and has to be told
        except Exception as failure:  # MLflow raises nearly every kind; the rest is done next time
            error = explain(failure, self._mirror.tracking_uri)
        return SyncReport(tuple(repairs), error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._mirror.alone():
            self._require_turn()
            yield

    def _require_turn(self) -> None:
        if not self._mirror.take_turn():
            raise TuttiError(
                "another process is telling MLflow something right now", "Try again in a minute."
            )

    def _compare(self, task: str | None) -> _Compared:
        """MLflow is read first, then the registry, then what waits: what is changed meanwhile waits
        in the outbox, so its task is left out, and the change not taken for a difference."""
        contents = self._mirror.projection().contents(task)
        versions = self._registry.list(task, limit=MAX_VERSIONS)
        unheard = {str(item.payload["task"]) for item in self._outbox.pending(MAX_VERSIONS)}
        drifts = find_drift(versions, contents, unheard)
        return _Compared(contents, {version.ref: version for version in versions}, drifts)

    def _repair(self, drift: Drift, compared: _Compared, policy: Policy, adopt: Adopt) -> str:
        """What was done; nothing where it is only to be reported."""
        if not drift.is_of_alias:
            return self._make_again(compared.versions[drift.subject], compared.contents)
        if policy == "revert":
            return self._set_back(drift)
        if policy == "adopt":
            return self._adopt(drift, compared, adopt)
        return ""

    def _make_again(self, version: PromptVersion, contents: MlflowContents) -> str:
        """What is missing of a version, once; the aliases that went away with it point at it."""
        version = self._mirror.make_whole(version)
        for alias in set(version.aliases) - aliases_in_mlflow([version], contents).keys():
            self._mirror.set_alias(version, alias)
        return f"is run {version.run_id}, model version {version.model_version}"

    def _set_back(self, drift: Drift) -> str:
        task, _, alias = drift.subject.rpartition("@")
        if drift.registry is None:
            self._mirror.remove_alias(task, alias)
            return "removed from MLflow"
        version = self._registry.resolve(PromptRef.parse(drift.subject))
        self._mirror.set_alias(version, alias)
        return f"MLflow set back to {version.ref}"

    def _adopt(self, drift: Drift, compared: _Compared, adopt: Adopt) -> str:
        incumbent = compared.versions.get(drift.registry or "")
        if_current = incumbent.number if incumbent else 0
        alias = PromptRef.parse(drift.subject)
        if drift.mlflow is None:
            adopt(alias, None, if_current)
            return "taken away here"
        if drift.mlflow not in compared.versions:
            raise TuttiError(
                f"{drift.mlflow} cannot be adopted: an alias of the registry is at one of its "
                "versions"
            )
        adopt(alias, compared.versions[drift.mlflow].number, if_current)
        return f"{drift.mlflow} promoted"
