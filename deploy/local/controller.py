"""The database's schema and `tutti controller`, run as a person would run them."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.local.processes import ClusterError, Service

NAME = "controller"
TUTTI = str(Path(sys.executable).with_name("tutti"))


def upgrade_schema(env: Mapping[str, str], folder: Path) -> None:
    """Servers' databases are never created or upgraded by the way: `tutti db upgrade` does it."""
    done = subprocess.run(
        (TUTTI, "db", "upgrade"), env=env, cwd=folder, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise ClusterError(f"`tutti db upgrade` failed:\n{done.stderr.strip()}")


def service(database_url: str, env: Mapping[str, str]) -> Service:
    """Stopped by SIGTERM: its unfinished jobs go back to the queue with their checkpoints."""
    return Service(NAME, (TUTTI, "controller"), env, lambda _, __: _leads(database_url))


def _leads(database_url: str) -> bool:
    """Whether a running process leads: this one, or another whom it would follow."""
    from orchestrator.domain.errors import TuttiError
    from orchestrator.holder import is_dead
    from orchestrator.registry.database import Database
    from orchestrator.registry.leadership import Leadership

    database = Database(database_url)
    try:
        leader = Leadership(database).leader()
    except TuttiError:  # the database is away
        return False
    finally:
        database.close()
    return leader is not None and not leader.is_expired and not is_dead(leader.holder)
