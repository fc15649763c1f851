"""What the registry says when its database fails: which database, why, and what to do.

TuttiError
├── DatabaseUnavailable   the database cannot be reached, locked or written now; a retry may work
└── AccessDenied (4)      the database refuses what the principal's roles do not allow

Passwords never appear: URLs are shown through `shown`, and a driver's own text is cleaned.
"""

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.domain.errors import InvalidInput, TuttiError

HIDDEN = "***"


class DatabaseUnavailable(TuttiError):
    """The database did not answer for the transaction. All of it was written or nothing: where the
    answer to a commit was lost, the commit may have been done. A retry must bear that."""


class AccessDenied(TuttiError):
    """The principal's roles do not allow it, says the database. Nothing was written."""

    exit_code = 4


def is_denied(error: SQLAlchemyError) -> bool:
    """Whether PostgreSQL refused for want of a privilege (insufficient_privilege)."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == "42501"


def shown(url: URL) -> str:
    """The URL for people, without its password, wherever in the URL that stands."""
    secret = [key for key in url.query if "password" in key.lower()]
    return url.update_query_dict(dict.fromkeys(secret, HIDDEN)).render_as_string(hide_password=True)


def explain(error: SQLAlchemyError, url: URL) -> TuttiError:
    """The sentence for a failure of the database itself (not of a statement)."""
    detail = _first_line(error, url)
    if is_denied(error):
        hint = getattr(getattr(error.orig, "diag", None), "message_hint", None)  # type: ignore[attr-defined]
        return AccessDenied(detail, hint or "See `tutti access show`; an admin may allow more.")
    if "not a database" in detail or "malformed" in detail:
        return InvalidInput(
            f"{shown(url)}: not a usable SQLite database: {detail}",
            "Give the path of a Tutti database, or of a file that does not exist yet; "
            "restore a damaged one from its backup.",
        )
    if url.get_backend_name() == "sqlite":
        return DatabaseUnavailable(
            f"{shown(url)}: the database cannot be used: {detail}",
            "Check that the folder can be written, the disk is not full, and no other program "
            "holds the file locked.",
        )
    return DatabaseUnavailable(
        f"{shown(url)}: the database cannot be used: {detail}",
        "Check that the server runs, and the URL's host, port, user, password and database name.",
    )


def _first_line(error: SQLAlchemyError, url: URL) -> str:
    text = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    line = text.splitlines()[0]
    secrets = [url.password, *(v for k, v in url.query.items() if "password" in k.lower())]
    for secret in secrets:
        if isinstance(secret, str) and secret:
            line = line.replace(secret, HIDDEN)
    return line
