"""Chemical elements out of mendeleev (MIT), read from its SQLite file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sources.rows import Row

#: The table's series, as one would say them of a single element; small ones are joined.
SERIES = {
    "Nonmetals": "nonmetal",
    "Noble gases": "nonmetal",
    "Halogens": "nonmetal",
}


def read_elements(package: Path, column: str) -> list[tuple[str, str]]:
    """Return (name, column) of every element in atomic order."""
    query = f"SELECT e.name, {column} FROM elements e JOIN series s ON s.id = e.series_id"
    with closing(sqlite3.connect(package / "mendeleev/elements.db")) as database:
        rows = database.execute(f"{query} ORDER BY e.atomic_number").fetchall()
    return [(str(name), str(value)) for name, value in rows]


def element_block(package: Path) -> list[Row]:
    """Element -> block of the periodic table."""
    return [
        {"element": name, "block": block} for name, block in read_elements(package, "e.block")
    ]


def element_symbol(package: Path) -> list[Row]:
    return [
        {"element": name, "symbol": block} for name, block in read_elements(package, "e.symbol")
    ]
