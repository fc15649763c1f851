"""How a registry is called where others may read it: never with a user or a password."""

import socket

from orchestrator.registry.engine import parse_url, sqlite_path


def registry_place(url: str) -> str:
    """`HOST:/path/tutti.db` of an embedded registry, `postgresql://HOST:PORT/NAME` on a server."""
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is not None:
        return f"{socket.gethostname()}:{path.absolute()}"
    host = parsed.host or socket.gethostname()
    return f"postgresql://{host}:{parsed.port or 5432}/{parsed.database or ''}"
