"""What the tables are made of: the metadata they share, and kinds of columns."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, ForeignKey, Integer, MetaData

from orchestrator.registry.dialect import PlainText, UtcDateTime

#: Where alembic keeps the revision; its default name is MLflow's in a shared database.
VERSION_TABLE = "tutti_schema"
#: What the tables declared here are; the newest migration's.
REVISION = "0011"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


# Only INTEGER gives SQLite its row id.
ROW_ID = BigInteger().with_variant(Integer(), "sqlite")


def row_id() -> Column[int]:
    return Column("id", ROW_ID, primary_key=True)


def text_column(name: str, refers_to: str | None = None, **options: Any) -> Column[str]:
    keys = [ForeignKey(refers_to)] if refers_to else []
    return Column(name, PlainText(), *keys, nullable=False, **options)


def number_column(name: str, **options: Any) -> Column[int]:
    return Column(name, Integer(), nullable=False, **options)


def flag_column(name: str, **options: Any) -> Column[bool]:
    return Column(name, Boolean(), nullable=False, **options)


def json_column(name: str) -> Column[Any]:
    return Column(name, JSON(), nullable=False)


def time_column(name: str, **options: Any) -> Column[datetime]:
    return Column(name, UtcDateTime(), nullable=False, **options)
