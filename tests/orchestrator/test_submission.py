"""From spec files to jobs: everything is checked before anything is written."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.domain.digest import digest_file
from orchestrator.domain.errors import InvalidData, InvalidInput, InvalidSpec, UnknownName
from orchestrator.domain.job import JobOptions
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings
from orchestrator.submission import check_task, store_task
from tests.tiny import colour_rows, make_tiny_base, write_rows, write_task


@pytest.fixture(scope="module")
def home_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that has the tiny base."""
    home = tmp_path_factory.mktemp("home")
    with open_tutti(home) as tutti:
        tutti.add_base("tiny", make_tiny_base(tmp_path_factory.mktemp("tiny-base")))
    return home


def open_tutti(home: Path) -> Tutti:
    return Tutti(read_settings({"TUTTI_HOME": str(home)}, home))


@pytest.fixture
def tutti(home_template: Path, tmp_path: Path) -> Iterator[Tutti]:
    home = shutil.copytree(home_template, tmp_path / "home")
    with open_tutti(home) as opened:
        yield opened


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    return folder


@dataclass(frozen=True)
class Written:
    """What a data directory holds beside its bases."""

    num_jobs: int
    num_artifacts: int

    @classmethod
    def of(cls, tutti: Tutti) -> "Written":
        artifacts = Path(tutti.settings.artifact_url).rglob("*")
        return cls(len(tutti.jobs()), sum(path.is_file() for path in artifacts))


NOTHING = Written(0, 0)


def test_a_right_spec_becomes_a_job_with_its_data_stored(tutti: Tutti, tasks: Path) -> None:
    (submitted,) = tutti.submit([write_task(tasks, "colour")])
    assert submitted.is_new
    assert submitted.warnings == ()
    submission = submitted.job.submission
    assert submission.base_fingerprint == tutti.base("tiny").fingerprint
    assert submission.num_rows == {"train": 16, "eval": 6}
    files = {split: tasks / f"data/colour.{split}.jsonl" for split in ("train", "eval")}
    assert submission.datasets == {split: digest_file(path) for split, path in files.items()}
    for split, digest in submission.datasets.items():
        assert tutti.parts.artifacts.get_bytes(digest) == files[split].read_bytes()
    assert Written.of(tutti) == Written(1, 2)
    assert submission.num_positions == pytest.approx(4 * (3.375 + 4 + 4.5), rel=0.05)
    width, hidden, tokens = 64, 16, 4
    learned = tokens * width + (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
    assert submission.num_bytes == 5 * 4 * learned


def test_submitting_twice_is_the_same_job(tutti: Tutti, tasks: Path) -> None:
    path = write_task(tasks, "colour")
    (first,), (second,) = tutti.submit([path]), tutti.submit([path])
    assert first.job.id == second.job.id
    assert (first.is_new, second.is_new) == (True, False)
    assert Written.of(tutti) == Written(1, 2)


def test_force_makes_a_new_job(tutti: Tutti, tasks: Path) -> None:
    path = write_task(tasks, "colour")
    (first,), (second,) = tutti.submit([path]), tutti.submit([path], force=True)
    assert first.job.id != second.job.id
    assert second.is_new


def test_a_moved_folder_is_the_same_job_and_changed_data_another(
    tutti: Tutti, tasks: Path, tmp_path: Path
) -> None:
    (first,) = tutti.submit([write_task(tasks, "colour")])
    moved = shutil.move(tasks, tmp_path / "elsewhere")
    (second,) = tutti.submit([Path(moved) / "colour.yaml"])
    assert second.job.id == first.job.id
    write_rows(Path(moved) / "data/colour.train.jsonl", colour_rows(17))
    (third,) = tutti.submit([Path(moved) / "colour.yaml"])
    assert third.job.id != first.job.id


def test_later_edits_do_not_reach_a_job(tutti: Tutti, tasks: Path) -> None:
    (submitted,) = tutti.submit([write_task(tasks, "colour")])
    path = tasks / "data/colour.train.jsonl"
    before = path.read_bytes()
    path.write_text("changed")
    stored = tutti.parts.artifacts.get_bytes(submitted.job.submission.datasets["train"])
    assert stored == before


def test_data_that_changes_while_it_is_read_is_refused(tutti: Tutti, tasks: Path) -> None:
    checked = check_task(write_task(tasks, "colour"), tutti.parts)
    write_rows(tasks / "data/colour.eval.jsonl", colour_rows(3))
    with pytest.raises(InvalidData, match=r"colour\.eval\.jsonl: changed while it was being read"):
        store_task(checked, tutti.parts, "")


def test_one_wrong_spec_among_right_ones_writes_nothing_and_all_faults_are_told(
    tutti: Tutti, tasks: Path
) -> None:
    paths = [
        write_task(tasks, "good"),
        write_task(tasks, "typo", trainig={}),
        write_task(tasks, "nobase", base="nothing"),
        tasks / "missing.yaml",
    ]
    with pytest.raises(InvalidInput) as caught:
        tutti.submit(paths)
    message = str(caught.value)
    assert "typo.yaml:" in message
    assert "did you mean 'training'?" in message
    assert "there is no base model 'nothing'" in message
    assert "missing.yaml: no such file" in message
    assert Written.of(tutti) == NOTHING


def test_a_single_fault_keeps_its_kind(tutti: Tutti, tasks: Path) -> None:
    with pytest.raises(InvalidSpec):
        tutti.submit([write_task(tasks, "a", answer="nothing")])
    with pytest.raises(UnknownName, match="did you mean 'tiny'"):
        tutti.submit([write_task(tasks, "b", base="tinny")])


def test_a_row_longer_than_the_base_names_its_file_and_line(tutti: Tutti, tasks: Path) -> None:
    path = write_task(tasks, "colour")
    rows = [*colour_rows(3), {"word": "a" * 300, "colour": "red"}]
    write_rows(tasks / "data/colour.eval.jsonl", rows)
    with pytest.raises(InvalidData, match=r"colour\.eval\.jsonl:4: the row has 310 tokens"):
        tutti.submit([path])
    assert Written.of(tutti) == NOTHING


def test_the_fields_of_the_manual_prompt_are_needed_too(tutti: Tutti, tasks: Path) -> None:
    path = write_task(tasks, "colour", evaluation={"manual_prompt": "{size} {word}: {colour}"})
    with pytest.raises(InvalidData, match=r"train\.jsonl:1: the row lacks the field 'size'"):
        tutti.submit([path])


@pytest.mark.parametrize("path", ["a\\0b", "a\\ud800b"])
def test_a_data_path_that_no_file_can_have_is_refused(tutti: Tutti, tasks: Path, path: str) -> None:
    spec = write_task(tasks, "colour")
    spec.write_text(spec.read_text().replace("data/colour.train.jsonl", f'"{path}"'))
    with pytest.raises(InvalidInput, match=r"cannot (be read|read)"):
        tutti.submit([spec])
    assert Written.of(tutti) == NOTHING


def test_held_out_rows_that_were_trained_on_are_warned_about(tutti: Tutti, tasks: Path) -> None:
    path = write_task(tasks, "colour")
    rows = [*colour_rows(2, offset=500), *colour_rows(3)]
    write_rows(tasks / "data/colour.eval.jsonl", rows)
    (submitted,) = tutti.submit([path])
    (warning,) = submitted.warnings
    assert warning.startswith("3 of 5 eval rows also stand in the training data")
    assert "colour.eval.jsonl:3" in warning


def test_a_sweep_is_one_job_with_the_work_of_all_its_trials(tutti: Tutti, tasks: Path) -> None:
    (plain,) = tutti.submit([write_task(tasks, "plain")])
    over = {"training.batch_size": [4, 12], "encoder.init": [None, {"from": "vocabulary"}]}
    (swept,) = tutti.submit([write_task(tasks, "swept", sweep={"over": over})])
    work = plain.job.submission.num_positions
    assert swept.job.submission.num_positions == pytest.approx(8 * work)
    assert swept.job.submission.num_bytes == 4 * plain.job.submission.num_bytes
    assert len(tutti.job(swept.job.id).submission.spec.trials()) == 4
    (again,) = tutti.submit([write_task(tasks, "swept", sweep={"over": over})])
    assert not again.is_new


def test_a_sweep_as_an_array_is_a_job_for_each_trial(tutti: Tutti, tasks: Path) -> None:
    sweep = {"over": {"training.batch_size": [2, 4]}}
    spec = write_task(tasks, "swept", sweep=sweep, promote=None)
    (whole,) = tutti.submit([spec])
    array = tutti.submit([spec], as_arrays=True)
    assert [each.is_new for each in array] == [True, True]
    jobs = [each.job for each in array]
    assert [job.submission.spec.training.batch_size for job in jobs] == [2, 4]
    small, large = (job.submission.num_positions for job in jobs)
    assert large == 2 * small
    assert small + large == whole.job.submission.num_positions
    place = jobs[0].submission.place
    assert place is not None
    assert [job.id for job in tutti.array(place.array)] == [job.id for job in jobs]
    again = tutti.submit([spec], as_arrays=True)
    assert [(each.job.id, each.is_new) for each in again] == [(job.id, False) for job in jobs]
    with pytest.raises(InvalidInput, match="would make one job of an array"):
        tutti.submit([spec], options=JobOptions(key="mine"), as_arrays=True)
    assert {each.array for each in tutti.parts.jobs.ready()} == {None, place.array}


def test_every_trial_of_a_sweep_is_checked(tutti: Tutti, tasks: Path) -> None:
    path = write_task(tasks, "swept", sweep={"over": {"training.steps": [4, 0]}})
    with pytest.raises(InvalidSpec, match=r"the trial with \{training.steps: 0\}: steps: Input"):
        tutti.submit([path])
    assert Written.of(tutti) == NOTHING


def test_a_spec_with_a_start_becomes_a_job_that_keeps_it(tutti: Tutti, tasks: Path) -> None:
    encoder = {"type": "mlp", "hidden_size": 16, "init": {"from": "text", "text": "red or blue"}}
    (submitted,) = tutti.submit([write_task(tasks, "colour", encoder=encoder)])
    stored = tutti.job(submitted.job.id).submission.spec.encoder
    assert stored.model_dump(mode="json", exclude={"num_layers", "dropout"}) == encoder
