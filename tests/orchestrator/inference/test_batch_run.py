import json
from pathlib import Path

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.inference.batch_run import resolve_references
from orchestrator.inference.chunk import InputFile, scan
from tests.orchestrator.inference.conftest import MakeVersion


def source_of(folder: Path, *lines: object) -> InputFile:
    path = folder / "requests.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return scan(path)


def test_each_reference_is_resolved_once(tmp_path: Path, make_version: MakeVersion) -> None:
    version = make_version("colour")
    asked: list[str] = []

    def resolve(ref: PromptRef) -> PromptVersion:
        asked.append(str(ref))
        if ref.task == "nothing":
            raise UnknownName(f"there is no task {ref.task!r}", "List them.")
        return version

    source = source_of(
        tmp_path,
        {"task": "colour", "fields": {}},
        {"task": "nothing", "fields": {}},
        {"task": "colour", "fields": {"x": "y"}, "version": 3},
        "no json",
        {"task": "colour", "fields": {}, "version": "staging"},
        {"task": "colour", "fields": {}},
        {"task": "nothing", "fields": {}},
        {"task": "../x", "fields": {}},
    )
    versions, unresolved = resolve_references(source, "staging", resolve)
    assert asked == ["colour@staging", "nothing@staging", "colour@3"]
    assert versions == {"colour@staging": version, "colour@3": version}
    assert unresolved == {"nothing@staging": "there is no task 'nothing'"}
