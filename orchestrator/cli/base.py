"""`tutti base`: frozen base models, registered by name and pinned by fingerprint."""

from pathlib import Path
from typing import Any

import click

from orchestrator.cli.output import (
    as_json_option,
    note,
    print_fields,
    print_json,
    print_table,
    when,
)
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.task_spec import check_name


@click.group("base")
def command() -> None:
    """Add and list frozen base models."""


@command.command("add")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--gguf", metavar="FILE", help="A GGUF file in PATH, converted once to safetensors.")
@click.option("--replace", is_flag=True, help="Let NAME mean this model from now on.")
@as_json_option
def add(name: str, path: Path, gguf: str | None, replace: bool, as_json: bool) -> None:
    """Register the transformers folder PATH as base NAME.

    Its config, tokenizer and safetensors weights are copied into the data directory and hashed to
    a fingerprint. Adding the same model again changes nothing.
    """
    from orchestrator.sdk import Tutti

    try:
        check_name(name)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    with Tutti() as tutti:
        record, is_new = tutti.add_base(name, path, gguf, replace)
    if as_json:
        print_json(_json(record) | {"added": is_new})
        return
    print_fields(_fields(record))
    note("added" if is_new else "already there: nothing to do")


@command.command("list")
@as_json_option
def list_(as_json: bool) -> None:
    """List the registered base models."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        records = tutti.bases()
    if as_json:
        print_json([_json(record) for record in records])
    elif records:
        columns = ("base", "architecture", "parameters", "max length", "fingerprint", "added")
        print_table(columns, [_row(record) for record in records])
    else:
        note("no base models yet: add one with `tutti base add NAME PATH`")


@command.command("show")
@click.argument("name")
@as_json_option
def show(name: str, as_json: bool) -> None:
    """Show one base model."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        record = tutti.base(name)
    if as_json:
        print_json(_json(record))
    else:
        print_fields(_fields(record))


def _row(record: BaseModelRecord) -> list[str]:
    return [
        record.name,
        record.architecture,
        f"{record.num_parameters:,}",
        str(record.max_length),
        short(record.fingerprint),
        when(record.created_at),
    ]


def _fields(record: BaseModelRecord) -> dict[str, str]:
    return {
        "base": record.name,
        "fingerprint": record.fingerprint,
        "architecture": record.architecture,
        "parameters": f"{record.num_parameters:,}",
        "embedding size": str(record.hidden_size),
        "max length": str(record.max_length),
        "source": record.source,
        "files": ", ".join(sorted(record.files)),
    }


def _json(record: BaseModelRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "fingerprint": record.fingerprint,
        "architecture": record.architecture,
        "num_parameters": record.num_parameters,
        "hidden_size": record.hidden_size,
        "max_length": record.max_length,
        "source": record.source,
        "files": dict(record.files),
        "created_at": record.created_at.isoformat(),
    }
