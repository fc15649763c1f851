"""Roles: who may do what, by patterns of task names. PostgreSQL holds to them; SQLite has none.

Each role may do what those before it may:
viewer      reads, everything
trainer     submits jobs and controls its own; describes and tags versions
promoter    moves aliases, approves
controller  runs jobs, registers versions, tells MLflow; acts on all tasks
admin       overrides gates (--force); on all tasks also base models, quotas, roles: everything
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.errors import InvalidInput

ALL_TASKS = "*"
# PostgreSQL cuts names at 63 bytes, and keeps those with pg_ for itself.
_PRINCIPAL = re.compile(r"(?!pg_)[a-z_][a-z0-9_.@-]{0,62}")
_PATTERN = re.compile(r"[a-z0-9*][a-z0-9._*-]{0,99}")


class Role(StrEnum):
    VIEWER = "viewer"
    TRAINER = "trainer"
    PROMOTER = "promoter"
    CONTROLLER = "controller"
    ADMIN = "admin"


#: Roles that need all tasks: what they see or do is not of one task.
WHOLE = (Role.VIEWER, Role.CONTROLLER)


@dataclass(frozen=True)
class Access:
    """What one principal, a login of the database, may do on the tasks a pattern matches."""

    principal: str
    role: Role
    task_pattern: str


def check_principal(name: str) -> str:
    """Return `name` if it may name a login, else raise InvalidInput with the rule."""
    if not _PRINCIPAL.fullmatch(name):
        raise InvalidInput(
            f"{name[:80]!r} cannot name a principal",
            "Give 1 to 63 of a-z, 0-9, _ . @ and -, beginning with a letter or _, and not pg_.",
        )
    return name


def check_access(access: Access) -> Access:
    """Return an access that can be given, else raise InvalidInput."""
    check_principal(access.principal)
    if not _PATTERN.fullmatch(access.task_pattern):
        raise InvalidInput(
            f"{access.task_pattern[:120]!r} is no pattern of task names",
            "Give a task's name; * in it stands for any characters: 'country-*', or '*' for all.",
        )
    if access.role in WHOLE and access.task_pattern != ALL_TASKS:
        raise InvalidInput(
            f"a {access.role} cannot be one of {access.task_pattern!r} alone: a viewer reads "
            "everything, and a controller runs whatever is queued",
            f"Leave --tasks out, or give --tasks '{ALL_TASKS}'.",
        )
    return access
