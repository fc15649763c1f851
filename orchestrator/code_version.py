"""Which code made a version: the program's version, and the git commit when run from a checkout."""

import subprocess
from functools import cache
from pathlib import Path

VERSION = "0.1.0"


@cache
def code_version() -> str:
    """`0.1.0`, or `0.1.0+g1a2b3c4d5e6f` in a git checkout, with `.dirty` if files changed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return VERSION
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return VERSION
    dirty = ".dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{VERSION}+g{commit}{dirty}"


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
