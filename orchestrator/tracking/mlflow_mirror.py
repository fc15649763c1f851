"""MLflow as a mirror of the registry, fed from the outbox. SQL is the truth; MLflow may be down.

Items are delivered in order and marked when MLflow has them; one that fails stays, with its error,
and is delivered later. Delivering an item twice makes nothing twice.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.tracking.mlflow_client import explain, is_database, open_client
from orchestrator.tracking.mlflow_projection import PICTURE, MlflowProjection

if TYPE_CHECKING:
    from orchestrator.registry.leadership import Turn
    from orchestrator.registry.outbox import Outbox, OutboxItem
    from orchestrator.registry.prompt_registry import PromptRegistry

MAX_ITEMS = 10_000


@dataclass(frozen=True)
class Delivery:
    """What one `deliver` did. `error` is the first failure: MLflow's, or an item's own."""

    num_delivered: int
    num_pending: int
    error: str | None = None


class MlflowMirror:
    """Tells MLflow what happened. `artifact_root`: where an MLflow without a server keeps files.
    Processes that share a server take turns: two at once would make a version two runs."""

    def __init__(
        self,
        tracking_uri: str,
        outbox: "Outbox",
        registry: "PromptRegistry",
        artifacts: ArtifactStore,
        artifact_root: Path | None = None,
        turn: "Turn | None" = None,
    ) -> None:
        self.tracking_uri = tracking_uri
        self._outbox = outbox
        self._registry = registry
        self._artifacts = artifacts
        self._artifact_root = artifact_root
        self._turn = turn
        self._projection: MlflowProjection | None = None

    def deliver(self) -> Delivery:
        """Deliver what is pending. Without any, MLflow is not even imported; while another process
        delivers, it is left to that."""
        if not self._outbox.num_pending():
            return Delivery(0, 0)
        try:
            with self.alone():
                return self.deliver_alone()
        except OSError as failure:
            error = explain(failure, self.tracking_uri)
            return Delivery(0, self._outbox.num_pending(), error)

    def deliver_alone(self) -> Delivery:
        """`deliver`, by a process that is `alone` already."""
        num_delivered, error = self._deliver(self._pending())
        return Delivery(num_delivered, self._outbox.num_pending(), error)

    def take_turn(self) -> bool:
        """Whether nobody else tells the server anything for the next minute."""
        return self._turn is None or self._turn.take()

    def ping(self) -> str | None:
        """None if MLflow answers, else why it does not."""
        try:
            open_client(self.tracking_uri).search_experiments(max_results=1)
        except Exception as error:  # MLflow raises nearly every kind for a server that is away
            return explain(error, self.tracking_uri)
        return None

    def picture(self, version: PromptVersion) -> str | None:
        """The path or URL of a delivered version's learning curve, or None."""
        if version.run_id is None:
            return None
        if self._artifact_root is not None:
            path = self._artifact_root / version.run_id / "artifacts" / PICTURE
            if path.is_file():
                return str(path)
        try:
            return self.projection().picture_url(version.run_id, self.tracking_uri)
        except Exception:  # a picture is not worth an error
            return None

    def _pending(self) -> "list[OutboxItem]":
        """Seen in this process's own turn: another may have delivered some until now."""
        return self._outbox.pending(MAX_ITEMS) if self.take_turn() else []

    def _deliver(self, items: "list[OutboxItem]") -> tuple[int, str | None]:
        """Stop at the first failure of MLflow; where the fault is a version's own (a lost
        artifact), go on with the other tasks."""
        num_delivered, first_error, blocked = 0, None, set()
        for item in items:
            if not self.take_turn():
                break
            task = item.payload["task"]
            if task in blocked:
                continue
            error, is_own_fault = self._attempt(item)
            if error is None:
                num_delivered += 1
                continue
            first_error = first_error or error
            if not is_own_fault:
                break
            blocked.add(task)
        return num_delivered, first_error

    def _attempt(self, item: "OutboxItem") -> tuple[str | None, bool]:
        """Deliver one item; return its error, and whether that is the item's own."""
        try:
            self._deliver_item(item)
        except TuttiError as error:
            text = f"{item.kind} of {item.payload['task']}: {error.message}"
            self._outbox.failed(item.id, text)
            return text, True
        except Exception as error:  # MLflow raises nearly every kind; the item waits in the outbox
            self._projection = None
            text = explain(error, self.tracking_uri)
            self._outbox.failed(item.id, text)
            return text, False
        self._outbox.delivered(item.id)
        return None, False

    def _deliver_item(self, item: "OutboxItem") -> None:
        task = item.payload["task"]
        if item.kind == "alias_removed":
            self.remove_alias(task, item.payload["alias"])
            return
        version = self._registry.resolve(PromptRef(task, item.payload["number"]))
        if item.kind == "version_registered":
            if item.attempts:  # the answer that a run was made may have been lost
                self.make_whole(version)
            else:
                self._ensure_linked(version)
        elif item.kind == "alias_moved":
            self.set_alias(version, item.payload["alias"])
        else:
            raise TuttiError(
                f"the outbox has an item of the unknown kind {item.kind!r}", "Upgrade Tutti."
            )

    def set_alias(self, version: PromptVersion, alias: str) -> None:
        """Point MLflow's alias at a version. One whose model version was deleted there is made
        again, with the aliases that went away with it. May raise whatever MLflow raises."""
        model_version, projection = self._ensure_linked(version), self.projection()
        from mlflow.exceptions import MlflowException

        try:
            projection.move_alias(version.task, alias, model_version, version.number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            model_version = self.project(version)
            for name in {alias, *version.aliases}:
                projection.move_alias(version.task, name, model_version, version.number)

    def remove_alias(self, task: str, alias: str) -> None:
        """Take an alias away from MLflow, where it may be gone already, its model with it."""
        projection = self.projection()
        from mlflow.exceptions import MlflowException

        try:
            projection.remove_alias(task, alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def project(self, version: PromptVersion) -> str:
        """Make what MLflow lacks of a version and link it; return its model version."""
        run_id, model_version = self.projection().project(version)
        if (run_id, model_version) != (version.run_id, version.model_version):
            self._outbox.link((version.task, version.number), run_id, model_version)
        return model_version

    def make_whole(self, version: PromptVersion) -> PromptVersion:
        """`project`, and drop what is there twice; return the version as it is linked now."""
        model_version = self.project(version)
        version = self._registry.resolve(PromptRef(version.task, version.number))
        assert version.run_id is not None, "it was just linked"
        self.projection().drop_doubles(version, version.run_id, model_version)
        return version

    def _ensure_linked(self, version: PromptVersion) -> str:
        """The MLflow model version that is this version, made now if there is none."""
        if version.run_id and version.model_version:
            return version.model_version
        return self.project(version)

    def projection(self) -> MlflowProjection:
        """An open MLflow."""
        if self._projection is None:
            if self._artifact_root is None and is_database(self.tracking_uri):
                raise ValueError("an MLflow without a server needs an artifact_root for its files")
            client = open_client(self.tracking_uri)
            self._projection = MlflowProjection(client, self._artifacts, self._artifact_root)
        return self._projection

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Beside an embedded MLflow, one process delivers at a time, the others wait; of a server,
        each item is somebody's turn."""
        if self._artifact_root is None:
            try:
                yield
            finally:
                if self._turn is not None:
                    self._turn.end()
            return
        self._artifact_root.mkdir(parents=True, exist_ok=True)
        with (self._artifact_root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
