"""What people say of a version: a description and tags. They change, and every change is kept.

`version_descriptions` holds what is said now, `description_changes` who said it when, in place of
what. The version itself is never touched.
"""

from collections.abc import Mapping

from sqlalchemy import Connection, insert, select

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import DescriptionChange, PromptVersion
from orchestrator.registry.dialect import insert_into, now, plain_text
from orchestrator.registry.names import require_name, unknown_name
from orchestrator.registry.tables import description_changes, version_descriptions
from orchestrator.registry.version_rows import id_of

MAX_DESCRIPTION = 10_000
MAX_TAG_VALUE = 1000
MAX_TAGS = 100
Texts = Mapping[str, str]


def change_description(
    connection: Connection,
    version: PromptVersion,
    actor: str,
    description: str | None,
    tags: Mapping[str, str | None],
) -> None:
    """Set the description (unless None) and these tags (None: remove) of a locked task's version;
    raise InvalidInput or UnknownName before anything is written."""
    new_text = version.description if description is None else plain_text(description)
    new_tags = _changed(version, tags)
    _check(version.ref, new_text, new_tags)
    old = _fields(version.description, version.tags)
    new = _fields(new_text, new_tags)
    changes = [
        {"field": field, "old": old.get(field), "new": new.get(field)}
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    ]
    if not changes:
        return
    values = {"description": new_text, "tags": new_tags}
    connection.execute(
        insert_into(connection, version_descriptions)
        .values(version_id=id_of(version), **values)
        .on_conflict_do_update(index_elements=[version_descriptions.c.version_id], set_=values)
    )
    for change in changes:
        row = {**change, "version_id": id_of(version), "actor": actor, "changed_at": now()}
        connection.execute(insert(description_changes).values(row))


def fetch_changes(connection: Connection, version: PromptVersion) -> list[DescriptionChange]:
    """All changes of a version's description and tags, newest first."""
    columns = (description_changes.c[name] for name in DescriptionChange.__dataclass_fields__)
    query = (
        select(*columns)
        .where(description_changes.c.version_id == id_of(version))
        .order_by(description_changes.c.id.desc())
    )
    return [DescriptionChange(**row) for row in connection.execute(query).mappings()]


def _changed(version: PromptVersion, tags: Mapping[str, str | None]) -> dict[str, str]:
    """The version's tags after these changes, in the order of their keys."""
    for key, value in tags.items():
        require_name("tag", key)
        if value is None and key not in version.tags:
            remedy = f"See `tutti prompts show {version.ref}`."
            raise unknown_name(f"tag of {version.ref}", key, sorted(version.tags), remedy)
    merged = {**version.tags, **tags}
    return {key: plain_text(value) for key, value in sorted(merged.items()) if value is not None}


def _check(ref: str, description: str, tags: Texts) -> None:
    if len(description) > MAX_DESCRIPTION:
        raise InvalidInput(
            f"{ref}: the description has {len(description)} characters; at most "
            f"{MAX_DESCRIPTION} are allowed"
        )
    for key, value in tags.items():
        if len(value) > MAX_TAG_VALUE:
            raise InvalidInput(
                f"{ref}: the tag {key} has {len(value)} characters; at most {MAX_TAG_VALUE} are "
                "allowed",
                "A longer text is a description: `tutti prompts describe`.",
            )
    if len(tags) > MAX_TAGS:
        raise InvalidInput(f"{ref}: {len(tags)} tags; at most {MAX_TAGS} are allowed")


def _fields(description: str, tags: Texts) -> dict[str, str]:
    """By the names that changes have."""
    said = {"description": description} if description else {}
    return {**said, **{f"tags.{key}": value for key, value in tags.items()}}
