"""What a check of the registry may find: stable kinds, each with what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass, field

#: Exit code of a check that found something which is not mended.
FOUND = 3
#: Tells what was done; None where nothing could be.
Repair = Callable[[], str | None]

_BACKUP = "Put it back with `tutti fsck --repair --from FOLDER`, FOLDER holding a copy of the store"
#: kind -> the remedy
REMEDIES = {
    "database-damaged": "Restore the database from a backup: `tutti db restore`.",
    "row-orphaned": "Restore the database from a backup: `tutti db restore`.",
    "counter-behind": "`tutti fsck --repair` raises the counter past every number that was given.",
    "alias-differs": "`tutti fsck --repair` puts it back to what its last promotion says.",
    "alias-unaudited": "Find out who wrote to the database; promote a version to it, on record.",
    "audit-gap": "Find out who wrote to the database, and compare with a backup.",
    "content-digest": "The row was changed: compare with a backup, and train the version again.",
    "artifact-missing": f"{_BACKUP}; or train the version again.",
    "artifact-altered": f"{_BACKUP}; without --from it is set aside.",
    "artifact-unreadable": "Check the store's disk, network and permissions, and look again.",
    "leftover": "`tutti gc --delete` removes it; `tutti fsck --repair` gives back half a removal.",
    "stray-file": "Not Tutti's: look at it, and move it out of the store.",
    "base-missing": "Add it on this machine: `tutti base add NAME FOLDER`.",
    "base-altered": "Add it again: `tutti base add NAME FOLDER`.",
    "mlflow-untold": "`tutti fsck --repair` tells MLflow of it.",
    "mlflow-link-lost": "`tutti fsck --repair` tells MLflow of it once more.",
    "outbox-stuck": "See the message; what it names must be mended, then it is delivered.",
}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. `done` says what a repair did; it `is_mended` when
    nothing is left to do."""

    kind: str
    where: str
    what: str
    done: str = ""
    is_mended: bool = False
    repair: Repair | None = field(default=None, compare=False, repr=False)

    @property
    def remedy(self) -> str:
        return REMEDIES[self.kind]
