"""Opens the file system behind the URL of an artifact store, and tells of its failures."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from orchestrator.domain.errors import InvalidInput, StoreUnavailable, TuttiError


def open_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url`, and the store's root in it. Raises InvalidInput."""
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InvalidInput(
            f"the artifact store {url!r} cannot be opened: {error}",
            "For s3:// install the extra: pip install 'tutti-orchestrator[s3]'; for others, the "
            "package that the message names.",
        ) from error
    except ValueError as error:
        raise InvalidInput(
            f"the artifact store {url!r} cannot be opened: {error}",
            "Give a folder, or a URL that fsspec knows, like s3://bucket/folder.",
        ) from error
    return fs, str(root).rstrip("/")


@contextmanager
def explained(url: str, what: str, remedy: str) -> Iterator[None]:
    """A failure of the store becomes StoreUnavailable, which says that one cannot `what`.

    Drivers raise kinds of their own (botocore's are no OSError); a local disk raises OSError alone.
    """
    try:
        yield
    except TuttiError:
        raise
    except OSError as error:
        raise StoreUnavailable(f"cannot {what} {url}: {error}", remedy) from error
    except Exception as error:
        if "://" not in url:
            raise
        raise StoreUnavailable(f"cannot {what} {url}: {error}", remedy) from error
