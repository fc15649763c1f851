"""A base model is stored whole, once, and refused when it is not what its fingerprint says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.bases.base_store import BaseStore
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.errors import IntegrityError, InvalidInput, TuttiError

KILLED_BEFORE_COMMIT = """
import os, signal, sys
from pathlib import Path
from orchestrator.bases.base_store import BaseStore
BaseStore._commit = lambda self, stage, manifest: os.kill(os.getpid(), signal.SIGKILL)
BaseStore(Path(sys.argv[1])).add("tiny", Path(sys.argv[2]))
"""


def entries(store: BaseStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if path.name != ".lock")


@pytest.fixture
def record(store: BaseStore, tiny_model: Path) -> BaseModelRecord:
    return store.add("tiny", tiny_model)


def test_adding_stores_a_plain_transformers_folder(
    store: BaseStore, record: BaseModelRecord, tiny_model: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = store.path(record.fingerprint)
    assert entries(store) == [record.fingerprint]
    assert set(record.files) == {
        *("config.json", "model.safetensors", "tokenizer_config.json", "added_tokens.json")
    }
    assert {path.name for path in folder.iterdir()} == {*record.files, "manifest.json"}
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    store.verify(record.fingerprint)


def test_the_record_says_what_the_model_is(
    store: BaseStore, record: BaseModelRecord, tiny_model: Path
) -> None:
    assert (record.name, record.source) == ("tiny", str(tiny_model))
    assert record.architecture == "LlamaForCausalLM"
    assert (record.hidden_size, record.max_length) == (64, 256)
    assert record.num_parameters == 98_624
    assert record.source_digest == store.source_digest(tiny_model)


def test_adding_again_changes_nothing(
    store: BaseStore, record: BaseModelRecord, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_needed(folder: object) -> None:
        raise AssertionError("a known source is not loaded again")

    monkeypatch.setattr("orchestrator.bases.base_store.check_model", not_needed)
    before = store.path(record.fingerprint).stat().st_ino
    again = store.add("another-name", tiny_model)
    assert (again.name, again.fingerprint) == ("another-name", record.fingerprint)
    assert (again.files, again.source_digest) == (record.files, record.source_digest)
    assert store.path(record.fingerprint).stat().st_ino == before


def test_place_and_program_version_do_not_change_the_fingerprint(
    store: BaseStore, record: BaseModelRecord, tiny_model: Path, edit_json: Callable[..., None]
) -> None:
    edit_json(transformers_version="6.0.0", _name_or_path="/elsewhere")
    (tiny_model / "README.md").write_text("A model.")
    (tiny_model / "generation_config.json").write_text("{}")
    again = store.add("tiny", tiny_model)
    assert again.fingerprint == record.fingerprint
    assert again.source_digest != record.source_digest
    assert again.files == record.files
    store.verify(record.fingerprint)


def test_a_chat_template_changes_the_fingerprint(
    store: BaseStore, record: BaseModelRecord, tiny_model: Path
) -> None:
    (tiny_model / "chat_template.jinja").write_text("{{ messages }}")
    assert store.add("tiny", tiny_model).fingerprint != record.fingerprint


def test_shards_are_stored(store: BaseStore, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    (tiny_model / "model.safetensors").unlink()
    model.save_pretrained(tiny_model, max_shard_size="200KB")
    record = store.add("tiny", tiny_model)
    assert "model.safetensors.index.json" in record.files
    assert sum(name.endswith(".safetensors") for name in record.files) > 1
    store.verify(record.fingerprint)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_an_altered_file_is_found(
    store: BaseStore, record: BaseModelRecord, name: str, tiny_model: Path
) -> None:
    file = store.path(record.fingerprint) / name
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"altered .*{name}.*: expected .*, actual") as caught:
        store.verify(record.fingerprint)
    assert record.fingerprint in str(caught.value)
    healed = store.add("tiny", tiny_model)
    assert healed.fingerprint == record.fingerprint
    assert entries(store) == [record.fingerprint]
    store.verify(record.fingerprint)


def test_a_missing_file_is_named(store: BaseStore, record: BaseModelRecord) -> None:
    (store.path(record.fingerprint) / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"model\.safetensors of the base model .* is missing"):
        store.verify(record.fingerprint)


def test_a_file_slipped_in_is_found(store: BaseStore, record: BaseModelRecord) -> None:
    (store.path(record.fingerprint) / "chat_template.jinja").write_text("{{ evil }}")
    with pytest.raises(IntegrityError, match=r"altered \(chat_template\.jinja\)"):
        store.verify(record.fingerprint)


def test_a_forged_manifest_is_found(store: BaseStore, record: BaseModelRecord) -> None:
    from orchestrator.domain.digest import digest_file

    folder = store.path(record.fingerprint)
    (folder / "tokenizer_config.json").write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["tokenizer_config.json"] = digest_file(folder / "tokenizer_config.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=rf"altered \(manifest.json\).*{record.fingerprint}"):
        store.verify(record.fingerprint)


@pytest.mark.parametrize("fingerprint", ["a" * 64, "../" * 21 + "a", ""])
def test_an_unknown_fingerprint_is_refused(store: BaseStore, fingerprint: str) -> None:
    with pytest.raises(IntegrityError):
        store.path(fingerprint)


def test_a_killed_add_leaves_no_base_and_is_swept(store: BaseStore, tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_COMMIT, str(store.root), str(tiny_model)]
    )
    assert done.returncode == -9
    (leftover,) = entries(store)
    assert leftover.startswith(".adding-")
    record = store.add("tiny", tiny_model)
    assert entries(store) == [record.fingerprint]


def test_a_full_disk_stores_nothing_and_says_so(
    store: BaseStore, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    store.root.mkdir()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(TuttiError, match=r"cannot store the base model tiny .* No space left"):
        store.add("tiny", tiny_model)
    assert entries(store) == []


def test_files_that_change_while_they_are_copied_are_refused(
    store: BaseStore, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_another(source: Path, to: Path) -> None:
        to.write_bytes(source.read_bytes() + b"\n" * (to.name == "tokenizer_config.json"))

    monkeypatch.setattr(shutil, "copyfile", copy_another)
    with pytest.raises(InvalidInput, match="changed while they were copied"):
        store.add("tiny", tiny_model)
    assert entries(store) == []


def test_a_bad_name_is_refused(store: BaseStore, tiny_model: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a name"):
        store.add("../tiny", tiny_model)


def test_adding_is_silent_and_offline(
    store: BaseStore,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*args: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", no_network)
    store.add("tiny", tiny_model)
    assert tuple(capfd.readouterr()) == ("", "")
