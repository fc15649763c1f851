from pathlib import Path

from tests.cli.conftest import Run, contents


def test_a_base_is_added_once(run: Run, home: Path, base_folder: Path) -> None:
    before = contents(home / "bases")
    again = run("base", "add", "tiny", base_folder)
    assert again.code == 0
    assert "already there: nothing to do" in again.err
    assert contents(home / "bases") == before


def test_bases_are_listed_and_shown(run: Run, home: Path) -> None:
    (listed,) = run("base", "list", "--json").json
    shown = run("base", "show", "tiny", "--json").json
    assert listed == shown
    assert shown["name"] == "tiny"
    assert len(shown["fingerprint"]) == 64
    assert shown["architecture"] == "LlamaForCausalLM"
    assert shown["max_length"] == 256
    assert shown["fingerprint"] in run("base", "show", "tiny").out
    assert "LlamaForCausalLM" in run("base", "list").out


def test_the_same_model_under_another_name_is_stored_once(
    run: Run, home: Path, base_folder: Path
) -> None:
    before = contents(home / "bases")
    done = run("base", "add", "other", base_folder, "--json")
    assert done.json["added"] is True
    assert contents(home / "bases") == before
    assert [base["name"] for base in run("base", "list", "--json").json] == ["other", "tiny"]


def test_no_bases_are_an_empty_list_and_a_hint(run: Run, new_home: Path) -> None:
    assert run("base", "list", "--json").json == []
    assert "tutti base add" in run("base", "list").err
