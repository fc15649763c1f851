"""How pytest-xdist shares the tests out: a file stays in one worker, for it shares what is dear to
build, and so do all the files of a folder that starts Ray clusters, for two at once starve each
other. A scheduler of our own: the marks of `--dist loadgroup` are lost under pytest 9.2."""

import pytest
from xdist.scheduler import LoadScopeScheduling

ONE_WORKER = ("tests/acceptance/",)


class FilesTogether(LoadScopeScheduling):
    """Gives out whole files, or whole folders of ONE_WORKER."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in ONE_WORKER if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FilesTogether:
    return FilesTogether(config, log)
