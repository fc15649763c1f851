"""Upkeep of the registry that the settings name: its parts put together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.artifacts.store_files import StoreFiles
from orchestrator.bootstrap import Parts
from orchestrator.registry.references import References

if TYPE_CHECKING:
    from orchestrator.domain.prompt_version import PromptRef, PromptVersion
    from orchestrator.registry.consistency import Link
    from orchestrator.tracking.lost_links import LostLink
    from orchestrator.upkeep.backup import Saved
    from orchestrator.upkeep.fsck import Report
    from orchestrator.upkeep.gc import Collected
    from orchestrator.upkeep.version_archive import Imported


def check_registry(parts: Parts, repair: bool, quick: bool, copies: str | None) -> "Report":
    """Check everything. `copies`: a folder or URL that holds a copy of the artifact store."""
    from orchestrator.registry.consistency import Consistency
    from orchestrator.registry.repairs import Repairs
    from orchestrator.tracking.lost_links import find_lost_links
    from orchestrator.upkeep.artifact_check import ArtifactCheck
    from orchestrator.upkeep.fsck import Fsck, MlflowLook

    def find_lost(links: "Sequence[Link]") -> "Sequence[LostLink]":
        named = [(each.task, each.number, each.run_id, each.model_version) for each in links]
        return find_lost_links(parts.settings.mlflow_tracking_uri, named)

    other = ArtifactStore(copies) if copies else None
    references = References(parts.database)
    return Fsck(
        Consistency(parts.database),
        Repairs(parts.database),
        ArtifactCheck(parts.artifacts, StoreFiles(parts.artifacts.url), references, other),
        parts.bases,
        parts.base_store,
        MlflowLook(parts.mirror.ping, find_lost),
    ).run(repair, quick)


def collect_garbage(parts: Parts, grace_s: float, delete: bool) -> "Collected":
    """Mark artifacts that nothing names, find the folders that batch runs left and, if `delete`,
    remove those whose grace is over."""
    from orchestrator.upkeep.batch_folders import collect_folders
    from orchestrator.upkeep.gc import check_grace, collect

    counts = parts.jobs.stats().counts
    check_grace(grace_s, sum(num for state, num in counts.items() if not state.is_terminal))
    files, now = StoreFiles(parts.artifacts.url), parts.jobs.now()
    folders = collect_folders(parts.batches, parts.settings.evaluations, now, grace_s, delete)
    found = collect(files, References(parts.database), now, grace_s, delete)
    return replace(found, folders=folders)


def export_prompts(parts: Parts, refs: "Sequence[PromptRef]", path: Path) -> "list[PromptVersion]":
    """Write versions as one archive file."""
    from orchestrator.registry.origin import registry_place
    from orchestrator.upkeep.version_archive import export_versions

    place = registry_place(parts.settings.database_url)
    return export_versions(parts.prompts, parts.artifacts, refs, path, place)


def import_prompts(parts: Parts, path: Path) -> "Imported":
    """Register the versions of an archive file, all of them or none."""
    from orchestrator.upkeep.version_archive import import_versions

    return import_versions(parts.prompts, parts.artifacts, path)


def save_registry(parts: Parts, folder: Path, with_artifacts: bool) -> "Saved":
    """Save the database, and the artifacts it names if asked to, in a new folder."""
    from orchestrator.code_version import code_version
    from orchestrator.registry import migrate
    from orchestrator.registry.origin import registry_place
    from orchestrator.upkeep.backup import Moment, save

    place = registry_place(parts.settings.database_url)
    moment = Moment(place, parts.jobs.now(), migrate.head(), code_version())
    return save(parts.database, parts.artifacts, folder.absolute(), moment, with_artifacts)


def restore_registry(parts: Parts, folder: Path) -> "Saved":
    """Bring a saved registry back into the empty one that the settings name."""
    from orchestrator.registry import migrate
    from orchestrator.upkeep.backup import restore

    return restore(parts.database, parts.artifacts, folder.absolute(), migrate.head())
