"""Access, and the care of the registry."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.domain.access import ALL_TASKS, Access, Role
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.sdk.verbs import Verbs

if TYPE_CHECKING:
    from orchestrator.registry.access_book import Standing
    from orchestrator.upkeep.backup import Saved
    from orchestrator.upkeep.fsck import Report
    from orchestrator.upkeep.gc import Collected

GRACE_S = 7 * 86_400.0


Versions = list[PromptVersion]


class UpkeepVerbs(Verbs):
    """Who may do what; checks, collection, archives, backups."""

    def access(self) -> list[Access]:
        """Who has which role on which tasks."""
        return list(self.parts.access.list())

    def standing(self) -> "Standing":
        """As whom this process acts in the database, and what it may."""
        return self.parts.access.standing()

    def add_access(self, principal: str, role: Role, tasks: str = ALL_TASKS) -> str | None:
        """Give a role on the tasks that match; the URL of a new login, with its token, or None.
        PostgreSQL only. Raises InvalidInput or AccessDenied, as the next two."""
        return self.parts.access.add(Access(principal, role, tasks))

    def rotate_access(self, principal: str) -> str:
        """Give a principal a new token in place of the old one: its URL."""
        return self.parts.access.rotate(principal)

    def remove_access(self, principal: str, tasks: str | None = None) -> None:
        """Take a principal's roles (on one pattern of tasks); with the last one, its login."""
        self.parts.access.remove(principal, tasks)

    def fsck(
        self, repair: bool = False, quick: bool = False, copies: str | None = None
    ) -> "Report":
        """Check the registry against its artifacts, its bases, itself and MLflow. `copies`: where a
        repair finds lost artifacts, a folder or URL that holds a copy of the store."""
        from orchestrator.upkeep_run import check_registry

        return check_registry(self.parts, repair, quick, copies)

    def gc(self, delete: bool = False, grace_s: float = GRACE_S) -> "Collected":
        """Mark artifacts that nothing names and find folders that cancelled batch runs and
        evaluations left; with `delete`, remove those whose grace is over."""
        from orchestrator.upkeep_run import collect_garbage

        return collect_garbage(self.parts, grace_s, delete)

    def export_prompts(self, refs: Sequence[str], path: Path) -> Versions:
        """Write versions as one archive file, with all they need but their base and data."""
        from orchestrator.upkeep_run import export_prompts

        return export_prompts(self.parts, [PromptRef.parse(ref) for ref in refs], path)

    def import_prompts(self, path: Path) -> list[tuple[PromptVersion, bool]]:
        """Register the versions of an archive, all or none; with False, those whose content was
        there already. Raises InvalidInput or IntegrityError before anything is stored."""
        from orchestrator.upkeep_run import import_prompts

        return import_prompts(self.parts, path)

    def backup(self, folder: Path, with_artifacts: bool = False) -> "Saved":
        """Save the database of this moment, and the artifacts it names if asked to, in a folder."""
        from orchestrator.upkeep_run import save_registry

        return save_registry(self.parts, folder, with_artifacts)

    def restore(self, folder: Path) -> "Saved":
        """Bring a saved registry back into this one, which must be empty."""
        from orchestrator.upkeep_run import restore_registry

        return restore_registry(self.parts, folder)
