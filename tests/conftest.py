"""How pytest-xdist shares the tests out: a file stays in one worker, for it shares what is dear to
build, and so do files that start Ray clusters, for many at once starve each other: in one worker
those on the whole cluster of deploy/local, in another those that start one of their own; every
README command goes to whichever is through first. A scheduler of our own: the marks of `--dist
loadgroup` are lost under pytest 9.2."""

import pytest
from xdist.scheduler import LoadScopeScheduling

#: Beginnings of paths; the first that fits counts.
ONE_WORKER = (
    "tests/acceptance/test_cluster",
    "tests/acceptance/test_readme",
    "tests/acceptance/",
)


class FilesTogether(LoadScopeScheduling):
    """Gives out whole files, or all the files of one of ONE_WORKER."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((start for start in ONE_WORKER if file.startswith(start)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FilesTogether:
    return FilesTogether(config, log)
