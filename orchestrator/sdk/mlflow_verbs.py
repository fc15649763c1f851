"""MLflow: told, and brought back into line."""

from typing import TYPE_CHECKING

from orchestrator.mlflow_watch import sync_mlflow
from orchestrator.sdk.promotion_verbs import PromotionVerbs

if TYPE_CHECKING:
    from orchestrator.tracking.mlflow_mirror import Delivery
    from orchestrator.tracking.reconcile import Policy, SyncReport


class MlflowVerbs(PromotionVerbs):
    """What MLflow is told."""

    def deliver(self) -> "Delivery":
        """Tell MLflow what it has not heard yet. Never raises for MLflow being away, nor for one
        who may not tell it: on PostgreSQL that is a controller's."""
        from orchestrator.registry.errors import AccessDenied
        from orchestrator.tracking.mlflow_mirror import Delivery

        try:
            return self.parts.mirror.deliver()
        except AccessDenied as error:
            return Delivery(0, self.parts.outbox.num_pending(), error.message)

    def sync_mlflow(
        self, drift: "Policy | None" = None, task: str | None = None, dry_run: bool = False
    ) -> "SyncReport":
        """Find where MLflow differs and repair it: what it lost is made again; aliases that were
        changed there by hand are reported, adopted (promoted here, behind their gates) or reverted,
        by `drift`, else by the setting. `dry_run` only finds. Raises TuttiError while another
        process tells MLflow."""
        if dry_run:
            return self.parts.reconciler.find(task)
        return sync_mlflow(self.parts, drift, task)
