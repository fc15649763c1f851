"""Names as the registry takes them: checked on the way in; when unknown, what exists instead."""

import difflib
from collections.abc import Sequence

from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.task_spec import check_name

_NUM_SHOWN = 20


def require_name(kind: str, name: str) -> str:
    """Return `name` if it may name a `kind` of thing, else raise InvalidInput with the rule."""
    try:
        return check_name(name)
    except ValueError as error:
        raise InvalidInput(f"{kind}: {error}") from error


def require_alias(alias: str) -> str:
    """An alias is a name but no number: TASK@7 is version 7."""
    require_name("alias", alias)
    if alias.isdecimal():
        raise InvalidInput(
            f"alias: {alias!r} is a number, so TASK@{alias} would mean a version",
            "Use a name with a letter, for example production.",
        )
    return alias


def unknown_name(kind: str, name: str, known: Sequence[str], remedy: str) -> UnknownName:
    """The error for a name that refers to nothing: close names, and otherwise what exists."""
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    close = difflib.get_close_matches(name[:100], known, n=3)
    if close:
        hint = f"did you mean {' or '.join(map(repr, close))}?"
    elif known:
        more = ", ..." if len(known) > _NUM_SHOWN else ""
        hint = f"there are {', '.join(known[:_NUM_SHOWN])}{more}"
    else:
        hint = "there is none yet"
    return UnknownName(f"there is no {kind} {shown!r}; {hint}", remedy)
