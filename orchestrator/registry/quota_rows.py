"""The owners' quotas, as rows."""

import math

from sqlalchemy import Connection, select

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.job import Quota
from orchestrator.registry.dialect import insert_into
from orchestrator.registry.tables import quotas

MAX_RUNNING = 1_000_000


def fetch_quotas(connection: Connection) -> list[Quota]:
    """All quotas, by owner."""
    rows = connection.execute(select(quotas).order_by(quotas.c.owner)).mappings()
    return [Quota(**row) for row in rows]


def write_quota(connection: Connection, quota: Quota) -> None:
    """Set an owner's quota; raise InvalidInput."""
    if not (math.isfinite(quota.share) and quota.share > 0):
        raise InvalidInput(
            f"{quota.owner}: the share is {quota.share}", "A share is a number above 0."
        )
    if quota.max_running is not None and not 0 <= quota.max_running <= MAX_RUNNING:
        raise InvalidInput(
            f"{quota.owner}: max_running is {quota.max_running}",
            f"Give 0 to {MAX_RUNNING}, or none for no bound.",
        )
    values = vars(quota)
    statement = insert_into(connection, quotas).values(values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=[quotas.c.owner], set_=values)
    )
