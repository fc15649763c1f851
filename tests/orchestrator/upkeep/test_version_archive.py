"""Archives carry versions whole, and nothing that is not exactly one of ours gets in."""

import json
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import IntegrityError, InvalidInput, TuttiError, UnknownName
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.registry.database import Database
from orchestrator.registry.origin import registry_place
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.upkeep.version_archive import export_versions, import_versions
from tests.orchestrator.upkeep.conftest import MakeTrained

PLACE = "far:/registry.db"
Members = dict[str, bytes]
JOB = "1" * 32


@pytest.fixture
def registry(sqlite_template: Path, tmp_path: Path) -> Iterator[PromptRegistry]:
    database = Database.open(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'here.db')}")
    yield PromptRegistry(database)
    database.close()


@pytest.fixture
def archive(
    registry: PromptRegistry, store: ArtifactStore, make_trained: MakeTrained, tmp_path: Path
) -> Path:
    """color@1 and taste@1 of another registry, which is this one's own beside it."""
    for task, seed in (("color", 0), ("taste", 1)):
        trained = make_trained(task, seed)
        registry.register(replace(trained, lineage=replace(trained.lineage, job=JOB, author="ann")))
    path = tmp_path / "prompts.tutti"
    refs = [PromptRef("taste", None), PromptRef("color", 1)]
    export_versions(registry, store, refs, path, PLACE)
    return path


@pytest.fixture
def other(sqlite_template: Path, tmp_path: Path) -> Iterator[Any]:
    """An empty registry and store elsewhere."""
    database = Database.open(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'other.db')}")
    yield PromptRegistry(database), ArtifactStore(str(tmp_path / "other-store"))
    database.close()


def members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, content: Members, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The archive with another manifest."""
    content = members(path)
    manifest = json.loads(content["manifest.json"])
    change(manifest)
    content["manifest.json"] = json.dumps(manifest).encode()
    return rewrite(path, content)


def refuse(other: Any, path: Path, match: str, error: type[TuttiError] = InvalidInput) -> None:
    """Importing says why not, and nothing was stored or registered."""
    registry, store = other
    with pytest.raises(error, match=match):
        import_versions(registry, store, path)
    assert registry.list() == []
    assert not Path(store.url).exists()


def test_versions_come_over_whole(
    archive: Path,
    database: Database,
    registry: PromptRegistry,
    store: ArtifactStore,
    tmp_path: Path,
) -> None:
    """To SQLite and to PostgreSQL."""
    there = ArtifactStore(str(tmp_path / "other-store"))
    imported = import_versions(PromptRegistry(database), there, archive)
    assert [(version.ref, is_new) for version, is_new in imported] == [
        ("color@1", True),
        ("taste@1", True),
    ]
    for version, _ in imported:
        here = registry.resolve(PromptRef(version.task, 1))
        assert version.digest == here.digest
        assert (version.config, version.metrics) == (here.config, here.metrics)
        for artifact in version.artifacts.values():
            assert there.get_bytes(artifact.digest) == store.get_bytes(artifact.digest)


def test_an_imported_version_keeps_its_origin_and_claims_no_local_job(
    archive: Path, other: Any, registry: PromptRegistry
) -> None:
    here = registry.resolve(PromptRef("color", 1))
    version, _ = import_versions(*other, archive)[0]
    assert version.lineage.origin == {
        "registry": PLACE,
        "ref": "color@1",
        "created_at": here.created_at.isoformat(),
        "job": JOB,
    }
    assert (version.lineage.job, version.lineage.parent) == (None, None)
    assert version.lineage.author == "ann"
    assert version.lineage.datasets == here.lineage.datasets


def test_a_version_that_travels_on_keeps_its_first_origin(
    archive: Path, other: Any, tmp_path: Path
) -> None:
    registry, store = other
    first = import_versions(registry, store, archive)[0][0].lineage.origin
    on = tmp_path / "on.tutti"
    export_versions(registry, store, [PromptRef("color", 1)], on, "near:/other.db")
    assert json.loads(members(on)["manifest.json"])["versions"][0]["lineage"]["origin"] == first


def test_equal_content_is_the_same_version(
    archive: Path, registry: PromptRegistry, store: ArtifactStore
) -> None:
    before = registry.list()
    assert [is_new for _, is_new in import_versions(registry, store, archive)] == [False, False]
    assert registry.list() == before


def test_numbers_go_on_where_a_task_stands(
    archive: Path, other: Any, make_trained: MakeTrained
) -> None:
    registry, store = other
    registry.register(make_trained(seed=9))
    assert import_versions(registry, store, archive)[0][0].ref == "color@2"


def test_equal_versions_give_equal_bytes(
    archive: Path, registry: PromptRegistry, store: ArtifactStore, tmp_path: Path
) -> None:
    registry.promote(PromptRef("color", 1), "production", "ann")
    again = tmp_path / "again.tutti"
    refs = [PromptRef("color", "production"), PromptRef("color", 1), PromptRef("taste", 1)]
    export_versions(registry, store, refs, again, PLACE)
    assert again.read_bytes() == archive.read_bytes()


def test_one_bad_version_lets_none_in(archive: Path, other: Any) -> None:
    def spoil(manifest: dict[str, Any]) -> None:
        manifest["versions"][1]["metrics"] = {"accuracy": "high"}

    refuse(other, edit(archive, spoil), "versions.1.metrics.accuracy")


def test_a_registry_that_fails_half_way_has_none(
    archive: Path, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.registry import version_intake

    def fail_at_the_second(connection: Any, kind: str, payloads: Any) -> None:
        assert {payload["task"] for payload in payloads} == {"color", "taste"}
        raise InvalidInput("no")

    monkeypatch.setattr(version_intake, "post_all", fail_at_the_second)
    registry, store = other
    with pytest.raises(InvalidInput):
        import_versions(registry, store, archive)
    assert registry.list() == []


def test_a_lost_artifact_leaves_no_archive(
    registry: PromptRegistry, store: ArtifactStore, make_trained: MakeTrained, tmp_path: Path
) -> None:
    version, _ = registry.register(make_trained())
    store.discard(version.artifacts["encoder"].digest)
    path = tmp_path / "x.tutti"
    path.write_bytes(b"before")
    with pytest.raises(IntegrityError, match="missing"):
        export_versions(registry, store, [PromptRef("color", 1)], path, PLACE)
    assert path.read_bytes() == b"before"
    assert not [each for each in tmp_path.iterdir() if each.name.endswith(".part")]


def test_unknown_versions_and_bad_folders_are_named(
    registry: PromptRegistry, store: ArtifactStore, make_trained: MakeTrained, tmp_path: Path
) -> None:
    with pytest.raises(UnknownName, match="nothing"):
        export_versions(registry, store, [PromptRef("nothing", 1)], tmp_path / "x", PLACE)
    registry.register(make_trained())
    with pytest.raises(TuttiError, match="cannot be written"):
        export_versions(registry, store, [PromptRef("color", 1)], tmp_path / "no" / "x", PLACE)


# What is not one of ours


def test_what_is_no_zip_is_refused(other: Any, tmp_path: Path) -> None:
    for data in (b"", b"PK", b"PK\x03\x04" + b"x" * 50, pickle.dumps({"a": 1}), b"x" * 1000):
        path = tmp_path / "file"
        path.write_bytes(data)
        refuse(other, path, "not an archive of prompts")


def test_what_is_no_regular_file_is_refused(other: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", Path("/dev/zero")):
        refuse(other, path, "not an archive of prompts")


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "/etc/passwd",
        "artifacts/../../evil",
        "artifacts/",
        "artifacts/" + "A" * 64,
        "artifacts/" + "a" * 63 + "/",
        "x/artifacts/" + "a" * 64,
        "artifacts\\" + "a" * 64,
        "code.pkl",
        "manifest.json/",
        "a" * 64,
    ],
)
def test_a_member_that_belongs_in_none_is_refused(archive: Path, other: Any, name: str) -> None:
    refuse(other, rewrite(archive, {**members(archive), name: b"x"}), "belongs in none|named")


def test_an_artifact_that_no_version_names_is_refused(archive: Path, other: Any) -> None:
    extra = {f"artifacts/{digest_bytes(b'x')}": b"x"}
    refuse(other, rewrite(archive, {**members(archive), **extra}), "not those that its manifest")


def test_an_artifact_that_is_not_there_is_refused(archive: Path, other: Any) -> None:
    content = members(archive)
    content.popitem()
    refuse(other, rewrite(archive, content), "not those that its manifest")


def test_a_manifest_that_is_not_first_is_refused(archive: Path, other: Any) -> None:
    content = members(archive)
    last = {"manifest.json": content.pop("manifest.json")}
    refuse(other, rewrite(archive, {**content, **last}), "its first member is not manifest.json")


def test_a_member_that_stands_twice_is_refused(archive: Path, other: Any) -> None:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("manifest.json", b"{}")
    refuse(other, archive, "twice")


def test_a_zip_bomb_is_refused_without_unpacking_it(archive: Path, other: Any) -> None:
    content = {**members(archive), f"artifacts/{'a' * 64}": b"\0" * (1 << 24)}
    bomb = rewrite(archive, content, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 18
    refuse(other, bomb, "compressed")


def test_members_that_claim_more_than_the_file_has_are_refused(archive: Path, other: Any) -> None:
    """A stored member of 4 GB by its header: nothing of the kind is allotted."""
    data = bytearray(archive.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 28] = (0xF0000000).to_bytes(4, "little") * 2
    archive.write_bytes(data)
    refuse(other, archive, "longer than the file")


def test_overlapping_members_are_refused(archive: Path, other: Any) -> None:
    """Two entries of one place: the name beside the bytes is one of them alone."""
    data = bytearray(archive.read_bytes())
    central = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[central[2] + 42 : central[2] + 46] = data[central[1] + 42 : central[1] + 46]
    archive.write_bytes(data)
    refuse(other, archive, "cannot be read|[Oo]verlap")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR])
def test_links_and_devices_are_refused(archive: Path, other: Any, mode: int) -> None:
    content = members(archive)
    with zipfile.ZipFile(archive, "w") as opened:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o777) << 16
            opened.writestr(info, data)
    refuse(other, archive, "no regular file")


def test_something_before_or_behind_the_archive_is_refused(archive: Path, other: Any) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(b"#!/bin/sh\n" + whole)
    refuse(other, archive, "stands before it")
    archive.write_bytes(whole[:4] + b"x" * 100 + whole)
    refuse(other, archive, "stands before its first member|not an archive")


def test_altered_bytes_of_an_artifact_are_refused(archive: Path, other: Any) -> None:
    content = members(archive)
    name = list(content)[1]
    content[name] = content[name][:-1] + bytes([content[name][-1] ^ 1])
    refuse(other, rewrite(archive, content), "is altered", IntegrityError)


@pytest.mark.parametrize(
    ("role", "data"),
    [
        ("encoder", pickle.dumps({"a": 1})),
        ("prompt_embeddings", pickle.dumps({"a": 1})),
        ("encoder", b"PK\x03\x04 as torch.save writes"),
        ("curve", b"cos\nsystem\n(S'true'\ntR."),
        ("curve", b'{"../x": [[1, 2]]}'),
        ("curve", b"[1]"),
        ("sweep", b'{"metric": "accuracy", "trials": [1]}'),
        ("program", b"{}"),
    ],
)
def test_an_artifact_of_another_form_is_refused(
    archive: Path, other: Any, role: str, data: bytes
) -> None:
    """Also where every digest is right: whoever writes an archive computes them himself."""
    from orchestrator.domain.prompt_version import Artifact, Lineage, TrainedPrompt

    content = members(archive)
    manifest = json.loads(content["manifest.json"])
    version = manifest["versions"][0]
    version["artifacts"][role] = {"digest": digest_bytes(data), "num_bytes": len(data)}
    artifacts = {name: Artifact(**value) for name, value in version["artifacts"].items()}
    lineage = Lineage(**version["lineage"])
    made = TrainedPrompt("color", version["config"], {}, artifacts, lineage)
    version["digest"] = made.digest
    manifest["versions"] = [version]
    content[f"artifacts/{digest_bytes(data)}"] = data
    named = {f"artifacts/{artifact.digest}" for artifact in artifacts.values()}
    kept = {name: value for name, value in content.items() if name in named}
    rewrite(archive, {"manifest.json": json.dumps(manifest).encode(), **kept})
    refuse(other, archive, f"the {role} of color")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "../../etc"),
        ("task", "a'; DROP TABLE jobs; --"),
        ("task", 7),
        ("digest", "0" * 64),
        ("config", {}),
        ("metrics", {"accuracy": 1e999}),
        ("metrics", {"a/b": 1.0}),
        ("artifacts", {}),
        ("number", 3),
        ("lineage", {}),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(
    archive: Path, other: Any, key: str, value: Any
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["versions"][0][key] = value

    refuse(other, edit(archive, change), "its manifest: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("template", "{unclosed"),
        ("num_virtual_tokens", 10**12),
        ("token_dim", 0),
        ("candidates", "red"),
        ("encoder", {}),
        ("chat", {"before": 1}),
        ("max_answer_tokens", None),
    ],
)
def test_a_config_that_no_prompt_has_is_refused(
    archive: Path, other: Any, key: str, value: Any
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["versions"][0]["config"][key] = value

    refuse(other, edit(archive, change), "its manifest: ")


@pytest.mark.parametrize("change", [{"format": "other"}, {"format_version": 2}, {"versions": []}])
def test_a_manifest_of_another_format_is_refused(archive: Path, other: Any, change: Any) -> None:
    refuse(other, edit(archive, lambda manifest: manifest.update(change)), "its manifest: ")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1, "a": 2}', "NaN", "\ud800", "1" * 9000])
def test_hostile_json_is_refused(archive: Path, other: Any, text: str) -> None:
    content = {**members(archive), "manifest.json": text.encode("utf-8", "surrogatepass")}
    refuse(other, rewrite(archive, content), "its manifest: ")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), cut=st.booleans())
def test_no_altered_byte_is_imported_as_another_version(
    archive: Path, other: Any, at: float, mask: int, cut: bool
) -> None:
    """Refused with an error of ours, or (where a byte says nothing: a time) the same versions."""
    registry, store = other
    whole = archive.read_bytes()
    index = int(at * len(whole))
    data = bytearray(whole[:index] if cut else whole)
    if not cut:
        data[index] ^= mask
    spoiled = archive.with_name("spoiled")
    spoiled.write_bytes(data)
    originals = {
        json.loads(members(archive)["manifest.json"])["versions"][i]["digest"] for i in (0, 1)
    }
    try:
        imported = import_versions(registry, store, spoiled)
    except TuttiError:
        return
    assert {version.digest for version, _ in imported} == originals


def test_a_registry_is_named_without_its_password() -> None:
    assert registry_place("postgresql://ann:secret@db:5433/tutti") == "postgresql://db:5433/tutti"
    assert registry_place("sqlite:////a/tutti.db").endswith(":/a/tutti.db")
