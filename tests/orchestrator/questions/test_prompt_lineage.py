"""A lineage holds all that led to a version, and reads as a tree."""

from pathlib import Path

import pytest

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.questions import prompt_lineage
from orchestrator.questions.prompt_lineage import Branch, as_text, as_tree
from orchestrator.sdk import Tutti
from tests.orchestrator.questions.conftest import Register
from tests.tiny import write_task

DATA = {"datasets": {"train": "d" * 64, "eval": "e" * 64}, "num_rows": {"train": 8, "eval": 4}}


def test_a_lineage_holds_the_job_its_attempts_and_the_promotions(
    tutti: Tutti, register: Register, tmp_path: Path
) -> None:
    job = tutti.submit([write_task(tmp_path, "colour")])[0].job
    _, lease = tutti.parts.jobs.claim([job.id], "host:1:1", 60, "gang-1")[job.id]
    tutti.parts.jobs.start(lease)
    register(0)
    register(1, job=job.id, lineage=DATA)
    for number in (1, 2, 1):
        tutti.parts.prompts.promote(PromptRef("colour", number), "production", "ann", "better")
    found = tutti.lineage("colour@2")
    assert found.job is not None
    assert (found.job.id, [each.number for each in found.attempts]) == (job.id, [1])
    assert [(move.from_version, move.to_version) for move in found.promotions] == [(1, 2)]
    assert [each.ref for each in found.parents] == ["colour@1"]
    lines = as_text(as_tree(found)).splitlines()
    assert lines[0].startswith("colour@2 ")
    base = tutti.base("tiny").fingerprint[:12]
    assert lines[1:5] == [
        f"├── base tiny {base}",
        "├── data",
        f"│   ├── train: 8 rows, {'d' * 12}",
        f"│   └── eval: 4 rows, {'e' * 12}",
    ]
    assert f"├── job {job.id[:12]} of {job.owner}, running" in lines
    assert "│   └── attempt 1: running" in lines
    assert any(line.startswith("│   └── production: 1 -> 2 by ann, ") for line in lines)
    assert lines[-1].startswith("└── parent colour@1 ")


def test_a_stale_base_and_what_is_not_here_are_said(
    tutti: Tutti, register: Register, other_base: Path
) -> None:
    register(0, job="ab" * 16)
    register(1, lineage={"base": "gone"})
    tutti.add_base("tiny", other_base, replace=True)
    now = tutti.base("tiny").fingerprint
    found = tutti.lineage("colour@1")
    assert found.current_base == now != found.version.lineage.base_fingerprint
    text = as_text(as_tree(found))
    assert f"(stale: tiny is {now[:12]} now)" in text
    assert f"job {'ab' * 6} (not in this registry)" in text
    assert "never promoted" in text
    assert "(not registered here)" in as_text(as_tree(tutti.lineage("colour@2")))


def test_a_long_chain_of_parents_is_cut_and_says_so(
    tutti: Tutti, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_lineage, "MAX_PARENTS", 2)
    for seed in range(6):
        register(seed)
    found = tutti.lineage("colour")
    assert [each.ref for each in found.parents] == ["colour@5", "colour@4"]
    lines = as_text(as_tree(found)).splitlines()
    assert lines[-1] == "        └── and 3 more before it"


def test_an_unknown_version_is_an_error(tutti: Tutti, register: Register) -> None:
    register()
    with pytest.raises(UnknownName, match="colour has no version 7"):
        tutti.lineage("colour@7")


def test_branches_are_drawn_below_their_own_parents() -> None:
    tree = Branch("a", (Branch("b", (Branch("c"), Branch("d"))), Branch("e", (Branch("f"),))))
    assert as_text(tree).splitlines() == [
        "a",
        "├── b",
        "│   ├── c",
        "│   └── d",
        "└── e",
        "    └── f",
    ]
